"""The time of a step as memory traffic: what a copy would move in that time.

A step of large tensors is limited by the memory. A copy of a large tensor takes turns with the
steps, on the same threads, and shows how fast this memory is. The share of the limit may exceed 1:
the tensors may fit into a cache, and a copy also reads the lines that it overwrites.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

COPY = "torch.Tensor.copy_"  # the contender


@dataclass(frozen=True)
class Traffic:
    """What the steps and the copy must move.

    Attributes:
        elements: of all tensors together.
        moved: the bytes per element that the algorithm of a contender reads and writes, by name.
        copied: the bytes that the copy reads and writes.
    """

    elements: int
    moved: Mapping[str, float]
    copied: int

    def of(self, name: str, seconds: Mapping[str, list[float]]) -> dict[str, float]:
        """Return the numbers of one contender for the report."""
        rate = self.copied / statistics.median(seconds[COPY])
        if name == COPY:
            return {"bytes_per_second": rate}
        median = statistics.median(seconds[name])
        in_bytes = median * rate / self.elements
        found = {
            "picoseconds_per_element": 1e12 * median / self.elements,
            "bytes_per_element": in_bytes,
        }
        if name in self.moved:
            found["share_of_limit"] = self.moved[name] / in_bytes
        return found
