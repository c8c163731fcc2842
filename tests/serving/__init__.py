"""ReFT on vLLM: run by `make test-serving`, in an environment of its own."""
