"""Five lessons as notebooks; `python -m examples.notebooks` executes them and writes their outputs."""
