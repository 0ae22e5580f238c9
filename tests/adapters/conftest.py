"""The processes that several modules of tests share."""

import pytest


@pytest.fixture(scope="module")
def crew():
    """Yield process groups of torch.distributed, which start when a test needs them."""
    from tests.support.torch_crew import Crew

    crew = Crew()
    yield crew
    for processes in crew.by_size.values():
        processes.stop()
