"""Makes the conformance vectors from exact arithmetic."""
