"""Adapters on one base behind vLLM's server: `python -m examples.serving`."""
