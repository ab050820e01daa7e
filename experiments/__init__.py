"""The paper's experiments other than its tables, each as ``python -m experiments.NAME``."""
