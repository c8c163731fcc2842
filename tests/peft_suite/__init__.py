"""PEFT's own tests, run with our configs: `make test-peft`.

`fetch` takes the tests from the source distribution of the installed PEFT and puts our table of configs (`configs`) in
the place of theirs; `stand_ins` makes the tiny models that they name, since no hub is asked; `plugin` skips what does
not apply, with its reason (`not_applicable`).
"""
