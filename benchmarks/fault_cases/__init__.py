"""The cases of ``benchmarks/faults.py``."""
