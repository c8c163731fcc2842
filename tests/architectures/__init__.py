"""The architecture sweep: every text model class of the installed transformers, made tiny and examined.

`shrink` makes a config tiny, `classes` lists the classes, `models` makes one and its batch, `checks` and `decoding`
examine it against plain hooks (`plain`), `exam` comes to a verdict, `sweep` runs each class in a process of its own,
`page` writes docs/architectures.md. `python -m architectures` in `tests/` does all of it.
"""
