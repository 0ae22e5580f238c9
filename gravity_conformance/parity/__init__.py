"""`gravity parity`: every installed backend, graded against the NumPy reference."""
