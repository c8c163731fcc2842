"""The suite runs, chooses what exists, and counts a test as not applicable only where it ends in our error."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import MergeError, PromptBoundaryError

from .configs import CHOSEN, TABLES
from .fetch import archive_of, prepare_tests
from .not_applicable import NOT_APPLICABLE
from .plugin import pytest_collection_modifyitems
from .run import run_suite

BUILD = Path(__file__).parents[2] / "build" / "peft_suite"
OPT = "peft-internal-testing/tiny-random-OPTForCausalLM"
GROUP = "OPTFor and (merge_layers_nan or save_pretrained or unload or checkpointing)"


@pytest.fixture(scope="module")
def archive() -> Path:
    """PEFT's source distribution."""
    try:
        return archive_of(BUILD)
    except RuntimeError as error:
        pytest.skip(str(error))


def test_every_name_is_that_of_a_test(archive: Path, tmp_path: Path) -> None:
    """A test that was renamed would otherwise stay on a list for ever, or be left out in silence."""
    package = prepare_tests(archive, tmp_path)
    texts = {module: (package / f"{module}.py").read_text() for module in TABLES}
    for name in NOT_APPLICABLE:
        assert any(f"    def {name}(" in text for text in texts.values()), name
    for module, names in CHOSEN.items():
        for name in names:
            assert f"    def {name.partition('[')[0]}(" in texts[module], name


@pytest.mark.usefixtures("archive")
def test_a_group_of_tests_passes_and_those_that_do_not_apply_end_in_our_error(tmp_path: Path) -> None:
    """OPT, four configs: with two of them training without labels is refused; merging with all."""
    done = run_suite(
        tmp_path,
        ["-k", GROUP],
        modules=["test_decoder_models"],
        models=[OPT],
        downloads=BUILD,
        output=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stdout
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["xfailed"] == 4 + 2 * 2
    assert counts["passed"] > 20
    assert "failed" not in counts


class Item:
    """A collected test: its case, its parameters and the marks it is given."""

    def __init__(self, module: str, name: str, case: str = "", **parameters: Any) -> None:
        self.originalname, self.name = name, f"{name}[{case}]" if case else name
        self.path = Path(f"{module}.py")
        self.callspec = SimpleNamespace(params=parameters)
        self.marks: list[pytest.MarkDecorator] = []

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark)


@pytest.mark.parametrize(
    ("item", "kept", "raises"),
    [
        (Item("test_decoder_models", "test_merge_layers", "LoraConfig-x"), False, None),
        (Item("test_decoder_models", "test_merge_layers", "ReftConfig-x"), True, MergeError),
        (Item("test_decoder_models", "test_save_pretrained", "ReftConfig-x"), True, None),
        (Item("test_hub_features", "test_local_model_saving_no_warning"), True, None),
        (Item("test_config", "test_local_model_saving_no_warning"), False, None),
        (Item("test_custom_models", "test_mixed_adapter_batches_multiple_modules_to_save", "LoRA x"), True, None),
        (Item("test_custom_models", "test_mixed_adapter_batches_multiple_modules_to_save", "RoAd x"), False, None),
        *(
            (
                Item(
                    "test_decoder_models",
                    "test_training_decoders_gradient_checkpointing",
                    "ReftConfig",
                    config_cls=ReftConfig,
                    config_kwargs={"positions": positions},
                ),
                True,
                raises,
            )
            for positions, raises in {"f2": None, "f1+l1": PromptBoundaryError}.items()
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Item) else None,
)
def test_what_is_run_and_what_must_end_in_which_error(item: Item, kept: bool, raises: type[Exception] | None) -> None:
    left: list[Any] = []
    items: list[Any] = [item]
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    assert (items, left) == (([item], []) if kept else ([], [item]))
    assert [(mark.kwargs["raises"], mark.kwargs["strict"]) for mark in item.marks] == [(raises, True)] * bool(raises)
