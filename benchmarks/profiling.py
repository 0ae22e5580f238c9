"""What torch's profiler records of a step: the peak of extra memory, and the kernels of a GPU."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], Any]


def peak_extra_bytes(step: Step) -> int:
    """Return the peak of allocated bytes during `step`, minus those allocated before it."""
    import torch

    step()  # the first step allocates states and permanent buffers
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    recorded = events(step, torch.profiler.ProfilerActivity.CPU, profile_memory=True)
    changes = [(e["ts"], e["args"]["Bytes"]) for e in recorded if e["name"] == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        live += change
        peak = max(peak, live)
    return peak


def kernels(step: Step) -> list[str]:
    """Return the names of the kernels that `step` runs on the GPU, without copies and fills."""
    import torch

    step()
    torch.cuda.synchronize()
    recorded = events(step, torch.profiler.ProfilerActivity.CUDA)
    return [event["name"] for event in recorded if event.get("cat") == "kernel"]


def events(step: Step, activity: Any, **options: Any) -> list[dict[str, Any]]:
    """Return the events of one call, as Chrome's trace format has them."""
    import torch

    with torch.profiler.profile(activities=[activity], **options) as record:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    # Through a file, because only private attributes of the record have the changes of memory.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        return found
