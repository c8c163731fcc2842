"""Skills learnt one after another: what is forgotten, by method, regime and remedy: `python -m benchmarks.forgetting`."""
