"""The processes of `gravity parity`, run as threads of this process because that is faster."""

import contextlib
import json
import queue
import threading

import pytest

from gravity_conformance.parity import connection, worker
from gravity_conformance.parity import run as parity
from tests.support.limits import HANG


class Point:
    """An entry point that no installed distribution provides."""

    def __init__(self, name, module, load):
        self.name, self.module, self.value, self.load = name, module, module, load


class Thread:
    """A backend with the interface of `_process.Process`."""

    def __init__(self, program, job, timeout):
        assert program == connection.PROGRAM
        self._inbox, self._events = queue.Queue(), queue.Queue()
        arguments = (job, self._inbox.get, self._tell)
        threading.Thread(target=worker._serve, args=arguments, daemon=True).start()

    def _tell(self, event, /, **values):
        self._events.put(json.dumps({"event": event, **values}))

    def send(self, message):
        self._inbox.put(message)

    def event(self):
        return json.loads(self._events.get(timeout=HANG))

    def close(self):
        self._inbox.put(None)


@contextlib.contextmanager
def threads(points=None):
    """Run backends in threads; `points` replace the installed ones."""
    load = worker._load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "Process", Thread)
        if points is not None:
            for module in (connection, parity):
                patch.setattr(module, "entry_points", lambda: points)
            patch.setattr(
                worker,
                "_load",
                lambda job: (
                    load(job)
                    if "spec" in job
                    else worker.as_backend(points[job["point"]["name"]].load())
                ),
            )
        yield


def compared(names=(), specs=(), *, points=None, seed=7, dtypes=("float32",), steps=3, **options):
    """Return the report of `gravity parity` on backends and SPECs."""
    report = parity.new_report(seed)
    with threads(points), connection.processes(names, specs) as started:
        found = {name: parity.imported(name, started[name], report) for name in started}
        present = {name: backend for name, backend in found.items() if backend is not None}
        parity.run(report, present, dtypes=dtypes, steps=steps, **options)
    return report
