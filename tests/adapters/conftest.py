"""Fixtures for several test modules."""

import pytest


@pytest.fixture(scope="module")
def process_groups():
    """Yield process groups of torch.distributed, which start when a test needs them."""
    from tests.support.torch_processes import ProcessGroups

    groups = ProcessGroups()
    yield groups
    for processes in groups.by_size.values():
        processes.stop()
