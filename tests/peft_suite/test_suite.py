"""The suite runs, chooses what exists, and counts a test as not applicable only where it ends in our error."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .configs import CHOSEN, TABLES
from .fetch import archive_of, prepare_tests
from .not_applicable import NOT_APPLICABLE
from .run import run_suite

BUILD = Path(__file__).parents[2] / "build" / "peft_suite"
OPT = "peft-internal-testing/tiny-random-OPTForCausalLM"
GROUP = "OPTFor and (merge_layers_nan or save_pretrained or unload or checkpointing)"


@pytest.fixture(scope="module", autouse=True)
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
