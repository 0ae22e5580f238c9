"""The peak of extra memory in a torch step, from the allocator's record."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_extra_bytes(step: Callable[[], Any]) -> int:
    """Return the peak of allocated bytes during `step`, minus those allocated before it."""
    import torch

    step()  # the first step allocates states and permanent buffers
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        step()
    # Through a file, because only private attributes of the record have the changes.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        peak = max(peak, live)
    return peak
