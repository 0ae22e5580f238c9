"""The one limit on time in the tests."""

HANG = 1800
"""Seconds after which a process hangs: far more than any takes, even on a busy machine."""
