"""The peak of extra memory that a torch step needs, from the allocator's own record."""

from collections.abc import Callable
from typing import Any


def peak_extra_bytes(step: Callable[[], Any]) -> int:
    """Return the most bytes that were allocated at once during `step`, beyond those before it."""
    import torch

    step()  # states and buffers that stay are made at the first step
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        step()
    events = record.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        peak = max(peak, live)
    return peak
