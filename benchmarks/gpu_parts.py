"""The parts of the check on a GPU: each is a function, which `benchmarks.gpu_check` runs by name.

A part returns what belongs into the JSON. What one path of Gravity raises is part of the result.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import gravity_core
from benchmarks import torch_step
from benchmarks.gpu_check import Options
from benchmarks.profiling import kernels
from benchmarks.shapes import CASES, GROUPED, Shape
from benchmarks.step import measure, over_runs, summarise, versions
from benchmarks.torch_vectors import replay_all
from gravity_conformance._guard import one_line
from gravity_torch import Gravity

TESTS = "tests/adapters/test_torch_cuda.py"
DTYPES = ("float32", "bfloat16")
BILLION = "1B"  # a list of one tensor, timed in bfloat16 only
# The kernels of fused=True come last, because a fault in them can end all work on the GPU.
PATHS: dict[str, dict[str, bool]] = {
    f"{name}{suffix}": path | option
    for name, path in (
        ("foreach=False", {"foreach": False}),
        ("foreach=True", {"foreach": True}),
        ("fused=True", {"fused": True}),
    )
    for suffix, option in (("", {}), (", capturable=True", {"capturable": True}))
}


class NotRunError(Exception):
    """A part that cannot run here; the message says why."""


def _need_gpu(options: Options) -> None:
    if options.device == "cpu":
        raise NotRunError("it needs a GPU")


def machine(options: Options) -> dict[str, Any]:
    """Return the versions, and the name and the driver of the GPU."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise NotRunError("torch sees no GPU; --device cpu rehearses without one")
    found: dict[str, Any] = {"versions": versions(), "device": torch_step.device_name()}
    found["gravity"] = gravity_core.__version__  # also where nothing of it is installed
    if options.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = _tried(lambda: subprocess.check_output(query, text=True).split())
        found["cuda"] = torch.version.cuda
        found["memory_bytes"] = torch.cuda.mem_get_info()[1]
    return found


def vectors(options: Options) -> dict[str, Any]:
    """Return for each path and dtype how many values of the vectors have the reference's bits."""
    return {name: _tried(replay_all, options.device, path) for name, path in PATHS.items()}


def launches(options: Options) -> dict[str, Any]:
    """Return for each path the kernels of a step of 1 and 1000 tensors, and if the host waits."""
    _need_gpu(options)

    def of(path: dict[str, bool], number: int) -> dict[str, Any]:
        step = Gravity(torch_step.parameters([(1000,)] * number), **path).step
        names = kernels(step)
        return {"kernels": len(names), "names": Counter(names), "waits": _waits(step)}

    return {
        name: {str(number): _tried(of, path, number) for number in (1, 1000)}
        for name, path in PATHS.items()
    }


def _waits(step: Callable[[], Any]) -> str | None:
    """Return torch's message if the host waits for the GPU in a step."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return one_line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def graph(options: Options) -> dict[str, Any]:
    """Return for each path whether replays of a captured step give the bits of eager steps."""
    _need_gpu(options)
    return {
        name: _tried(_graph_replays, path) for name, path in PATHS.items() if "capturable" in path
    }


def _graph_replays(path: dict[str, bool]) -> dict[str, bool]:
    shapes: list[Shape] = [(300, 200), (5,), (), (2_000_000,)]
    captured, eager = torch_step.parameters(shapes), torch_step.parameters(shapes)
    optimizer, reference = Gravity(captured, **path), Gravity(eager, **path)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        optimizer.step()
    for _ in range(4):
        recorded.replay()
    for _ in range(7):
        reference.step()
    torch.cuda.synchronize()
    return {"same": all(map(torch.equal, captured, eager))}


def tests(options: Options) -> dict[str, Any]:
    """Return the outcomes of the tests that need a GPU, and the messages of the failures."""
    _need_gpu(options)
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "junit.xml")
        pytest.main([TESTS, "-q", "-p", "no:cacheprovider", f"--junit-xml={path}"])
        cases = list(ElementTree.parse(path).iter("testcase"))
    outcomes: Counter[str] = Counter()
    messages = {}
    for case in cases:
        found = [x for x in case if x.tag in ("failure", "error", "skipped")]
        outcomes[found[0].tag if found else "passed"] += 1
        if found:
            message, text = found[0].get("message", ""), found[0].text or ""
            messages[case.get("name", "")] = f"{message[:500]}\n{text[-500:]}"
    return {"outcomes": outcomes, "messages": messages}


def table(options: Options) -> dict[str, Any]:
    """Return the times beside torch's fused Adam, by dtype and case."""
    only = [torch_step.ADAM, torch_step.DEFAULT, torch_step.FUSED]
    found = {
        dtype: {case: _tried(_row, case, dtype, only, options) for case in options.cases}
        for dtype in DTYPES
    }
    only.remove(torch_step.DEFAULT)  # it may need more memory
    found["bfloat16"][BILLION] = _tried(_row, BILLION, "bfloat16", only, options)
    return found


def _row(case: str, dtype: str, only: Sequence[str], options: Options) -> dict[str, Any]:
    shapes: list[Shape] = CASES[case] if case != BILLION else [(2**30,)]
    traffic = None if case in GROUPED else torch_step.traffic(shapes, dtype)
    if case == BILLION:
        _need_gpu(options)
        # W, G and two moments of Adam; W, G and V of Gravity; V₀ once more while it is drawn.
        needed = 8 * 2**30 * torch.bfloat16.itemsize + torch_step.traffic(shapes).copied
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < needed:
            raise NotRunError(f"it needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    steps = torch_step.contenders(shapes, 1, dtype=dtype, grouped=case in GROUPED, only=only)
    errors = {}
    for name, step in steps.items():
        try:
            step()
        except RuntimeError as error:
            errors[name] = {"error": one_line(error)}
            if name == torch_step.ADAM:
                raise
    usable = {name: step for name, step in steps.items() if name not in errors}
    summaries = [summarise(measure(usable, options.rounds), traffic) for _ in range(options.runs)]
    return {**over_runs(summaries), **errors}


def jax_table(options: Options) -> dict[str, Any]:
    """Return the times of gravity_jax beside optax's Adam, by case."""
    import jax

    from benchmarks import jax_step

    platform = jax.devices()[0].platform
    if options.device == "cuda" and platform != "gpu":
        raise NotRunError(f"JAX sees no GPU, only {platform}")

    def row(case: str) -> dict[str, Any]:
        steps = jax_step.contenders(CASES[case], 1)
        runs = [summarise(measure(steps, options.rounds)) for _ in range(options.runs)]
        return over_runs(runs)

    cases = [case for case in options.cases if case not in GROUPED]
    found: dict[str, Any] = {case: _tried(row, case) for case in cases}
    return {"device": jax.devices()[0].device_kind, **found}


def _tried(call: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a call, or what it raises."""
    try:
        return call(*args)
    except NotRunError as error:
        return {"not run": str(error)}
    except Exception as error:  # whatever it is belongs into the report
        return {"error": one_line(error)}


def main() -> None:
    """Run a part: its name, the options as JSON, the file for the result."""
    name, given, file = sys.argv[1:]
    part: Callable[[Options], dict[str, Any]] = globals()[name]
    # torch warns at every step of a capturable optimizer outside a graph.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    found = _tried(part, Options(**json.loads(given)))
    if found.keys().isdisjoint({"error", "not run"}):
        found = {"result": found}
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
