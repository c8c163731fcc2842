"""The documentation site: the repository's pages in reading order, and a reference made from docstrings.

`make docs` runs `python -m tools.site` in an environment of its own, which has Zensical and mkdocstrings and nothing
of torch. Pages stay where they are and link to each other as on GitHub; `stage` puts them where the site has them.
"""
