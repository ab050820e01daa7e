"""Speed and memory: the plain reference, the clock, and one module for each group of measurements."""
