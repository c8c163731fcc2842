"""Golden vectors of the format: folders in `tests/data/vectors`; in `tests`, `python -m vectors` writes them.

What writes them is kept free of the library, so that both can be wrong only independently.
"""
