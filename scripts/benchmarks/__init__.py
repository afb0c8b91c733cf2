"""The sections of ``scripts/benchmark.py``: one module each, on what ``timing.py`` gives them."""
