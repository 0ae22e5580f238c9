"""Python programs that run side by side in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.limits import HANG

ROOT = Path(__file__).parents[2]


def printed_words(code, **environment):
    """Run `code` with warnings as errors, and return the words that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def run_together(code, runs):
    """Run `code` once for each pair of arguments and environment, at the same time.

    Fail unless every process ends with status 0. No process outlives the call.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments, environment in runs
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=HANG)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # it also closes the pipe
