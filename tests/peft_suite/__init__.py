"""PEFT's own tests, run with our configs: `make test-peft`.

`fetch` takes the tests from the source distribution of the installed PEFT and puts what is ours (`configs`, `blocks`)
in the place of their tables and of LoRA's config; `stand_ins` makes the tiny models that they name, since no hub is
asked; `plugin` chooses the tests that concern us, and holds those that do not apply (`not_applicable`) to the error
that says why; `run` runs them in a process of their own.
"""
