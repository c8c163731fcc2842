"""Skills learnt one at a time, by every method at its best learning rate: `python -m benchmarks.quality`."""
