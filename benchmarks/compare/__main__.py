"""Entry point of `python -m benchmarks.compare`."""

from benchmarks.command import end_with
from benchmarks.compare.command import cli

if __name__ == "__main__":
    end_with("benchmarks.compare", cli)
