"""Skills learnt in sequence: what is forgotten, by method, regime and remedy: `python -m benchmarks.forgetting`."""
