"""Parts of benchmark.py: the plain reference, the clock, and one module for each group of measurements."""
