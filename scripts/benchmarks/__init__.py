"""The sections of ``scripts/benchmark.py``, one module each, based on ``timing`` and ``pages``."""
