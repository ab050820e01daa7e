"""The paper's experiments beside its tables, each as ``python -m experiments.NAME``."""
