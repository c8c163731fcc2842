"""Runs are kept one by one under the key of their settings; a command that was stopped goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forgetting import __main__ as forgetting
from benchmarks.study import runs
from benchmarks.study.jobs import do_missing
from benchmarks.study.options import listed
from benchmarks.study.runs import append, key_of, read, results_of
from peft_reft.hub_format.folder_lock import folder_lock

DONE: list[int] = []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    DONE.clear()
    monkeypatch.setattr(runs, "machine", lambda: {"device": "a processor"})


def work(settings: dict[str, Any]) -> dict[str, Any]:
    DONE.append(settings["n"])
    if settings["n"] == settings.get("fails"):
        raise RuntimeError("it broke")
    return {"twice": 2 * settings["n"]}


PLAN = [{"study": "made up", "n": n} for n in range(4)]


def test_only_what_is_missing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "runs.jsonl"
    assert do_missing(file, PLAN[:2], work) == 0
    assert do_missing(file, PLAN, work) == 0
    assert DONE == [0, 1, 2, 3]
    assert [result["twice"] for _, result in results_of(read(file).values(), study="made up")] == [0, 2, 4, 6]
    assert list(results_of(read(file).values(), n=3)) == [(PLAN[3], {"twice": 6})]
    assert "[4/4, 0 min left]" in capsys.readouterr().out


def test_runs_before_one_that_fails_are_kept(tmp_path: Path) -> None:
    file, broken = tmp_path / "runs.jsonl", [{**one, "fails": 2} for one in PLAN]
    with pytest.raises(RuntimeError):
        do_missing(file, broken, work)
    assert len(read(file)) == 2


def test_none_is_begun_after_the_minutes(tmp_path: Path) -> None:
    assert do_missing(tmp_path / "runs.jsonl", PLAN, work, minutes=-1) == 4
    assert not DONE


def test_a_line_that_was_cut_off_is_done_again_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    do_missing(file, PLAN, work)
    whole = file.read_text()
    file.write_text(whole[:-30])
    assert len(read(file)) == 3
    do_missing(file, PLAN, work)
    assert DONE == [0, 1, 2, 3, 3]
    assert file.read_text() == whole


def test_lines_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append(file, PLAN[0], {"twice": 0})
    run = json.loads(file.read_text())
    for line in ("{}", "[]", "nonsense", json.dumps({**run, "settings": PLAN[1]})):
        file.write_text(f"{line}\n")
        with pytest.raises(ValueError, match="line 1"):
            read(file)


def test_keys_do_not_depend_on_the_order_of_settings() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    "wrong",
    [
        ["--orders", "0"],
        ["--seeds", "-1"],
        ["--steps", "0"],
        ["--batch", "x"],
        ["--sizes", "1,2"],
        ["--sizes", "0,1,1"],
        ["--jobs", "0"],
        ["--minutes", "nan"],
        ["--minutes", "-1"],
    ],
    ids=str,
)
def test_numbers_that_would_learn_or_ask_nothing_are_wrong_usage(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["forgetting", "--output", str(tmp_path / "runs"), *wrong])
    with pytest.raises(SystemExit) as ended:
        forgetting.main()
    assert ended.value.code == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err


def test_a_table_of_no_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["forgetting", "--table", "--output", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="holds no runs"):
        forgetting.main()


def test_a_name_stands_once() -> None:
    with pytest.raises(SystemExit, match="twice"):
        listed("camel,polite,camel", ("camel", "polite"))


def test_a_process_waits_until_another_has_added_its_run(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text('{"key": "cut off')
    adds = threading.Thread(target=append, args=(file, PLAN[0], {"twice": 0}))
    with folder_lock(tmp_path):
        adds.start()
        adds.join(timeout=0.3)
        assert adds.is_alive()
        assert file.read_text() == '{"key": "cut off'
    adds.join(timeout=30)
    assert [run["settings"] for run in read(file).values()] == [PLAN[0]]
