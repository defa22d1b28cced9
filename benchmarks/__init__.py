"""Speed and memory, measured: `python -m benchmarks` (or `make bench`) writes tables, CSV files and docs/performance.md.

Everything is a ratio to a baseline within one process, the two taking turns; see `benchmarks.timing`.
"""
