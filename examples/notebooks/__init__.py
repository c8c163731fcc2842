"""Five lessons as notebooks, with their outputs; `python -m examples.notebooks` executes them anew."""
