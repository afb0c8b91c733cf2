"""The sections of ``scripts/benchmark.py``, one module each.

The modules ``timing``, ``pages``, ``setups`` and ``loaders`` are shared by the sections.
"""
