"""Speeds as commands: ``python -m benchmarks NAME [--quick] [--json]``."""
