"""Runs an implementation of any kind: finds it, constructs it, steps it, writes its state."""
