"""What `peft_reft.integrations` shows, and what it costs to import it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import peft_reft.integrations


def test_names_are_sorted_and_there() -> None:
    names = peft_reft.integrations.__all__
    assert names == sorted(names)
    assert all(hasattr(peft_reft.integrations, name) for name in names)
    assert set(names) <= set(dir(peft_reft.integrations))
    with pytest.raises(AttributeError, match="ReftDPOTrainer"):
        peft_reft.integrations.ReftDPOTrainer  # noqa: B018


def test_trl_is_imported_only_for_its_trainer() -> None:
    code = (
        "import sys, peft_reft.integrations as i\n"
        "i.ReftDataCollator\n"
        "i.GenerationMetric, i.evaluate_generations\n"
        "assert not {'trl', 'datasets'} & set(sys.modules)\n"
        "i.ReftSFTTrainer\n"
        "assert 'trl' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
