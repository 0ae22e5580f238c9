"""Conformance: does a Gravity implementation agree with the NumPy reference, and how closely?

The command ``gravity`` (the module `cli`) has these subcommands:

- ``gravity parity`` (`parity`) trains one network with every installed backend and grades each
  against the reference. `protocol` defines a backend; anyone can add one.
- ``gravity conform`` (`conform`) judges any implementation and names its mistake.
- ``gravity vectors`` (`vectors`) writes test vectors for ports to other languages.

`mutations` holds the known mistakes, which `conform` and `vectors` share.
"""
