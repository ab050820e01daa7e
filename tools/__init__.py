"""What is done now and then, each as ``python -m tools.NAME``: demo, export, release, benchmark, gpu_check."""
