"""A short run of the fuzzer, and its own checks: it sees what it looks for."""

from __future__ import annotations

from typing import Any

import pytest

from peft_reft.hub_format.errors import ReftError

from . import fuzz


def test_mutated_folders_are_read_or_refused_by_name() -> None:
    reports: list[str] = []
    read, found = fuzz.run(3_000, 11, fuzz.corpus(), reports.append)
    assert found == 0, "\n".join(reports)[:5000]
    assert 100 < read < 2_500  # mutations that change nothing, or everything, find nothing


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyError("reft"), "KeyError"), (ReftError("no"), "too little"), (ReftError("n" * 2000, rule="o"), "too little")],
    ids=["foreign", "silent", "long"],
)
def test_it_reports_errors_that_do_not_tell(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def broken(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(fuzz, "check_folder", broken)
    monkeypatch.setattr(fuzz, "check_members", broken)
    reports: list[str] = []
    assert fuzz.run(3, 0, fuzz.corpus(), reports.append) == (0, 3)
    assert said in reports[0]


def test_it_reports_what_safetensors_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "deserialize", lambda data: [])
    monkeypatch.setattr(fuzz, "mutate", lambda files, source: files)
    reports: list[str] = []
    alone = [files for files in fuzz.corpus() if fuzz.INDEX not in files]
    assert fuzz.run(2, 0, alone, reports.append) == (2, 2)
    assert "safetensors reads {}" in reports[0]
