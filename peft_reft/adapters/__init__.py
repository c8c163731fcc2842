"""Adapters on a model: what is active, one for every row of a batch, hot-swap, sums, factors, subspaces, values."""
