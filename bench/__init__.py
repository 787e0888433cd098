"""Benchmarks: each runs its peers side by side in one run and prints ratios. `python -m bench [NAME ...]`."""
