"""Speed and memory, as ratios within one process: `make bench`."""
