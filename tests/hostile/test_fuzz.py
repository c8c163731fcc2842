"""A short run of the fuzzer, and its own checks: it sees what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import folders, fuzz


def test_mutated_folders_are_read_or_refused_in_our_words(tmp_path: Path) -> None:
    folder = folders.good(tmp_path / "adapter", layers_to_transform=[0], r=1)
    reports: list[str] = []
    assert fuzz.run(1_500, 11, folder, reports.append) == 0, "\n".join(reports)[:5000]


def test_the_fuzzer_reports_a_foreign_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise KeyError(folder.name)

    folder = folders.good(tmp_path / "adapter", layers_to_transform=[0], r=1)
    monkeypatch.setattr(fuzz, "check_folder", broken)
    reports: list[str] = []
    assert fuzz.run(3, 0, folder, reports.append) == 3
    assert "KeyError" in reports[0]
