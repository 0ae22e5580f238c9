"""Conformance: does a Gravity implementation agree with the NumPy reference, and how closely?

`gravity parity` (the module `cli`) trains one network with every installed backend and
grades each against the reference. `protocol` says what a backend is; anyone can add one.
"""
