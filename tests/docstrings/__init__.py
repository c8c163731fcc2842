"""Help where people look: what the docstrings of public names must say."""
