"""Code that misbehaves, in one table for `gravity conform`, `gravity parity` and longer runs.

An act is code that a right implementation runs in its first step. Its outcome is what the command
must report: `RIGHT` for an act that changes no result, and else a pattern of the error.
"""

from typing import NamedTuple

from tests.support import command

RIGHT = ""
_ENDED = "its process (ended with status|was ended by)"


class Act(NamedTuple):
    """What misbehaving code does, and what must be reported; `posix` if it needs POSIX."""

    code: str
    outcome: str = RIGHT
    posix: bool = False


ACTS = {
    # The end of the process
    "exits with 0": Act("os._exit(0)", "its process ended with status 0"),
    "exits with 3": Act("os._exit(3)", "its process ended with status 3"),
    "kills itself": Act("os.kill(os.getpid(), 9)", "ended by SIGKILL", posix=True),
    "terminates itself": Act("os.kill(os.getpid(), 15)", "ended by SIGTERM", posix=True),
    "breaks": Act("os.abort()", "ended by SIGABRT", posix=True),
    "kills its group": Act("os.killpg(0, 9)", "ended by SIGKILL", posix=True),
    "becomes another program": Act(
        "os.execv(sys.executable, [sys.executable, '-c', ''])", _ENDED, posix=True
    ),
    # Exceptions
    "SystemExit": Act("raise SystemExit(0)", "SystemExit: 0"),
    "KeyboardInterrupt": Act("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": Act("raise GeneratorExit('bye')", "GeneratorExit: bye"),
    "BaseException": Act("raise BaseException('\\x1b[31mred\\n')", r"BaseException: \\x1b\[31mred"),
    "no message": Act(
        "raise type('Bad', (Exception,), {'__str__': lambda self: 1 // 0})", "Bad: .it has no"
    ),
    "no memory": Act("raise MemoryError", "MemoryError"),
    "no end of recursion": Act("(f := lambda: f())()", "RecursionError: maximum recursion"),
    # Output
    "prints much": Act("print('x' * 10**6)"),
    "prints escapes": Act("os.write(1, b'\\x1b[2J'); os.write(2, b'\\x9b2J\\n')"),
    "prints what looks like an event": Act('print(\'{"event": "done"}\')'),
    "closes stdout": Act("sys.stdout.close(); sys.stderr.close()"),
    "has no stdout": Act("sys.stdout = sys.stderr = None"),
    "closes descriptors": Act("os.closerange(0, 50)"),
    # The surroundings
    "goes elsewhere": Act("os.chdir(os.path.abspath(os.sep))"),
    "forgets the environment": Act("os.environ.clear()"),
    "forbids files": Act("import builtins; builtins.open = None"),
    "ignores signals": Act(
        "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]", posix=True
    ),
    "starts a thread": Act(
        "import threading; threading.Thread(target=threading.Event().wait).start()"
    ),
    "forks": Act("os.fork()", posix=True),
    "seeds generators": Act("import random; random.seed(3); np.random.seed(3)"),
    "traps floating point": Act("np.seterr(all='ignore')"),
    "patches NumPy": Act("np.array_equal = np.allclose = np.isfinite = lambda *a, **k: True"),
}

# A right function, and one that does an act once.
RIGHT_FUNCTION = f"""{command.RIGHT}
acted = []
def act():
    if not acted:
        acted.append(1)
        {{act}}
"""

STEP = """
def step(w, v, g, t, lr, beta):
    act()
    return right(w, v, g, t, lr, beta)
"""

BACKEND = """
from gravity_conformance.parity import numpy_backend
from gravity_conformance.parity.numpy_backend import *
def replay(replay, mode):
    act()
    yield from numpy_backend.replay(replay, mode)
"""


class Lie(NamedTuple):
    """What a backend yields in place of V, and the error."""

    code: str
    outcome: str


# A backend with a mode for each lie.
_LIAR = """
from gravity_conformance.protocol import Mode, Step
class Equal(np.ndarray):
    def __eq__(self, other): return np.ones(self.shape, bool)
    def tobytes(self): return b""
    def __array_ufunc__(self, ufunc, *a, **k): return np.zeros(self.shape)
def modes():
    return {name: Mode("eager") for name in LIES}
def replay(replay, mode):
    for v, w, begun in numpy_backend.replay(replay, "blocked"):
        yield Step(eval(LIES[mode]), w)
"""

LIES = {
    "always-equal": Lie(
        "[(3 * x).view(Equal) for x in v]",
        "velocity after step 0 must be plain NumPy arrays, got Equal",
    ),
    "masked": Lie("[np.ma.array(x, mask=True) for x in v]", "plain NumPy arrays, got Masked"),
    "no-array": Lie(
        "[type('A', (), {'shape': x.shape, 'dtype': x.dtype})() for x in v]",
        "velocity after step 0 must be plain NumPy arrays, got A",
    ),
    "half-type": Lie("[x.astype(np.float16) for x in v]", "step 0 must be arrays"),
    "byte-order": Lie("[x.astype(x.dtype.newbyteorder()) for x in v]", "step 0 must be arrays"),
    "too-few": Lie("v[1:]", "velocity after step 0 must be arrays"),
    "too-many": Lie("[*v, v[0]]", "velocity after step 0 must be arrays"),
    "None": Lie("None", "TypeError"),
}


def function(name: str) -> str:
    """Return a module whose `step` is right and does an act."""
    return RIGHT_FUNCTION.replace("{act}", ACTS[name].code) + STEP


def backend(name: str) -> str:
    """Return a module that is a right backend and does an act."""
    return RIGHT_FUNCTION.replace("{act}", ACTS[name].code) + BACKEND


def liar() -> str:
    """Return a module that is a backend with a mode for each lie."""
    lies = {name: lie.code for name, lie in LIES.items()}
    return RIGHT_FUNCTION.replace("{act}", "pass") + BACKEND + f"LIES = {lies!r}\n" + _LIAR
