"""A fair comparison of optimizers: `python -m benchmarks.compare --help`.

protocol.py    how a rate is chosen and what is reported; start here
optimizers.py  the optimizers, one implementation for NumPy and torch
problems.py    the table of problems; networks.py and analytic.py have what they train
store.py       a JSON for each pair of problem and optimizer; a killed run continues
analysis.py    medians, intervals, ties, steps to the target
plots.py       the figures
"""
