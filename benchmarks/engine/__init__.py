"""Rates and equality of the engines; `python -m benchmarks.engine --help`."""
