"""The contenders of `benchmarks.tf_step`, compiled by XLA."""

import functools

from benchmarks import tf_step

contenders = functools.partial(tf_step.contenders, jit_compile=True)
