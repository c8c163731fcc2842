"""Tools for tests, the demo and the examples; no part of the installed package."""
