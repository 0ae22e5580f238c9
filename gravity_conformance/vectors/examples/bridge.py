"""A bridge from Python to a port in another language, for ``gravity conform bridge.py:gravity``.

`gravity` sends each call to another program, over a pipe. That program is serve.mjs in this folder,
run by Node, unless the environment variable ``GRAVITY_PORT`` holds another command:

    GRAVITY_PORT='julia port.jl' gravity conform bridge.py:gravity

The program starts at the first call. It reads one request per line from its standard input, writes
one answer per line to its standard output, and ends when its input ends. What it writes to standard
error is shown. This is a request, here on several lines, and its answer:

    {"dtype": "float32", "shape": [2], "w": [1.0, -2.0], "v": [0.0, 0.0], "g": [0.5, "NaN"],
     "t": 1, "lr": 0.1, "beta": 0.9, "weight_decay": 0.0, "maximize": false}
    {"w": ["NaN", "NaN"], "v": ["NaN", "NaN"]}

Elements are in C order. A number is written with the digits of a float64 (float32 numbers are
float64 numbers, too), so it arrives exactly. What JSON lacks is a string: "NaN", "Infinity",
"-Infinity"; an answer may also have "-0", which JavaScript does not write as a number. An answer is
rounded to the dtype. If the program cannot answer, it sends {"error": "why"}, and `gravity` raises
RuntimeError.
"""

import atexit
import contextlib
import json
import math
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = ("float32", "float64")


def gravity(
    w: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    t: int,
    lr: float,
    beta: float,
    *,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the next W and V of one tensor, as the other program computes them.

    Remove `weight_decay` and `maximize` if your port does not offer them.

    Args:
        w: W, float32 or float64, of any shape.
        v: V, like w.
        g: the gradient, like w.
        t: the step, from 0 or 1.
        lr: η.
        beta: β.
        weight_decay: λ.
        maximize: whether to step along the gradient.

    Raises:
        TypeError: if the dtype is not one of DTYPES.
        OSError: if the program cannot be started.
        RuntimeError: if the program refuses the request, has ended, or writes something else.
    """
    dtype = str(w.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"the bridge takes float32 and float64 only, got {dtype}")
    request = {
        "dtype": dtype,
        "shape": list(w.shape),
        **{name: _numbers(x) for name, x in (("w", w), ("v", v), ("g", g))},
        "t": int(t),
        "lr": float(lr),
        "beta": float(beta),
        "weight_decay": float(weight_decay),
        "maximize": bool(maximize),
    }
    answer = _ask(request)
    return _array(answer, "w", w), _array(answer, "v", w)


def _numbers(array: np.ndarray) -> list[float | str]:
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    flat = array.astype(np.float64).ravel().tolist()
    return ["NaN" if math.isnan(x) else names.get(x, x) for x in flat]


def _array(answer: Any, name: str, like: np.ndarray) -> np.ndarray:
    numbers = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(numbers, list) or len(numbers) != like.size:
        raise RuntimeError(f"{name} must be a list of {like.size} numbers, got {numbers!s:.80}")
    with np.errstate(over="ignore"):
        return np.asarray([float(x) for x in numbers], like.dtype).reshape(like.shape)


_process: "subprocess.Popen[bytes] | None" = None


def _ask(request: dict[str, Any]) -> Any:
    global _process
    if _process is None:
        default = ["node", str(Path(__file__).with_name("serve.mjs"))]
        given = os.environ.get("GRAVITY_PORT", "")
        command = shlex.split(given, posix=os.name == "posix") or default
        _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(_end, _process)
    assert _process.stdin is not None
    assert _process.stdout is not None
    line = b""
    try:
        _process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        _process.stdin.flush()
        line = _process.stdout.readline()
    except OSError:
        pass  # it has ended
    except BaseException:  # interrupted: the next answer would be to this request
        _process.kill()
        raise
    if not line.endswith(b"\n"):
        _process.kill()  # if it has only closed its output
        what = f"the program {_process.args!r} has ended"
        raise RuntimeError(f"{what} with status {_process.wait()}")
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise RuntimeError(f"an answer must be one line of JSON, got {line[:80]!r}") from error
    if isinstance(answer, dict) and "error" in answer:
        raise RuntimeError(f"the program refused: {answer['error']}")
    return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Close the program's input, so that it ends."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.wait()
