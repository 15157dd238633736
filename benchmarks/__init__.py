"""Benchmarks on real models against real peers. `python -m benchmarks --help`."""
