"""Judges runs: compares them with the exact update, and finds the mistake that explains them."""
