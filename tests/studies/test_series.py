"""Series: runs of other skills, steps, batches or sizes stand in tables of their own, and leave the usual as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.forgetting import __main__ as forgetting_command
from benchmarks.forgetting.agree import agreement
from benchmarks.forgetting.pages import write as write_forgetting
from benchmarks.forgetting.plan import Arm, plan
from benchmarks.forgetting.scores import scores
from benchmarks.quality.__main__ import write as write_quality
from benchmarks.skills.registry import SKILLS
from benchmarks.study import runs
from benchmarks.study.runs import append, read
from benchmarks.study.series import RULES, SEQUENCES, Series, by_series, series_of
from studies.test_report import LAWFUL, METHODS, QUALITY, sequence

RULE_SKILLS = list(SEQUENCES[RULES])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "machine", lambda: {"device": "a processor"})


def of(made: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The runs, with other settings."""
    return [{**run, "settings": {**run["settings"], **settings}} for run in made]


def keep(file: Path, made: list[dict[str, Any]]) -> None:
    for run in made:
        append(file, run["settings"], run["result"])


def told_in(folder: Path) -> dict[str, bytes]:
    """File → bytes, of the tables and the figures."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".jsonl"}


USUAL = of(LAWFUL, order=RULE_SKILLS)
REAL = list(SEQUENCES["real"])


@pytest.mark.parametrize(
    ("settings", "told", "suffix"),
    [
        ({"order": RULE_SKILLS}, "", ""),
        ({"order": RULE_SKILLS[::-1]}, "", ""),
        ({"skill": "gcd"}, "", ""),
        ({"order": REAL[::-1]}, "real", "-real"),
        ({"order": ["gcd", "date"]}, "date gcd", "-date-gcd"),
        ({"order": RULE_SKILLS, "steps": 60}, "60 steps", "-60-steps"),
        ({"order": REAL, "steps": 60, "batch": 4}, "real, 60 steps, batch 4", "-real-60-steps-batch-4"),
        ({"skill": "gcd", "sizes": [64, 8, 8]}, "sizes 64 8 8", "-sizes-64-8-8"),
        ({"order": RULE_SKILLS, "times": "1/3"}, "rate × 1/3", "-rate-times-1-of-3"),
        ({"order": REAL, "times": "3"}, "real, rate × 3", "-real-rate-times-3"),
    ],
)
def test_a_series_is_named_after_what_is_not_usual_in_it(settings: dict[str, Any], told: str, suffix: str) -> None:
    series = series_of({"steps": 20, "batch": 8, "sizes": [256, 32, 32], **settings})
    assert (series.told, series.suffix) == (told, suffix)
    assert (series in (Series(), Series(frozenset(RULE_SKILLS)))) == (told == "")


def test_sequences_have_names_of_skills_and_each_skill_once() -> None:
    for skills in SEQUENCES.values():
        assert set(skills) <= set(SKILLS)
        assert len(set(skills)) == len(skills)
    assert len({frozenset(skills) for skills in SEQUENCES.values()}) == len(SEQUENCES)


def test_runs_are_parted_by_weights_and_series_and_the_usual_come_first() -> None:
    longer, other = of(USUAL, steps=60), of(USUAL, identity="b")
    parted = by_series([*longer, *USUAL, *other])
    assert [(identity, series.told) for identity, series in parted] == [("a", ""), ("b", ""), ("a", "60 steps")]
    assert list(parted.values()) == [USUAL, other, longer]


def test_forgetting_of_another_series_changes_nothing_of_the_usual_tables_and_figures(tmp_path: Path) -> None:
    file = tmp_path / "forgetting.jsonl"
    keep(file, USUAL)
    write_forgetting(file)
    usual = told_in(tmp_path)
    assert "forgetting-wide.md" in usual
    assert ">Five skills in sequence</text>" in usual["forgetting-wide-loss-rise-kl.svg"].decode()
    worse = [sequence(Arm(method), seed, kept=0.1, kl=9.0) for method in METHODS for seed in range(2)]
    keep(file, [*of(worse, order=RULE_SKILLS, steps=60), *of(worse, order=REAL)])
    write_forgetting(file)
    both = told_in(tmp_path)
    assert {name: both[name] for name in usual} == usual
    for name, told in (("60-steps", "60 steps"), ("real", "real")):
        page = both[f"forgetting-wide-{name}.md"].decode()
        assert page.startswith(f"# Forgetting, base wide (a), {told}\n")
        assert "- 8 runs;" in page
        figure = both[f"forgetting-wide-{name}-loss-rise-kl.svg"].decode()
        assert f">Skills in sequence: {told}</text>" in figure
    assert b"## Fewer blocks" not in both["forgetting-wide-real.md"]


def test_single_skills_of_another_series_change_nothing_of_the_usual_table(tmp_path: Path) -> None:
    file = tmp_path / "quality.jsonl"
    keep(file, QUALITY)
    write_quality(file)
    usual = told_in(tmp_path)
    keep(file, of([{**run, "result": {**run["result"], "accuracy": 0.0}} for run in QUALITY], steps=60))
    keep(file, of(QUALITY[:1], study="search", steps=90))
    write_quality(file)
    both = told_in(tmp_path)
    assert {name: both[name] for name in usual} == usual
    assert both["quality-wide-60-steps.md"].startswith(b"# Quality, base wide (a), 60 steps\n")
    assert not any("90" in name for name in both)


def test_series_agree_by_the_order_of_their_arms_though_no_block_is_common() -> None:
    usual = scores(USUAL)
    other = scores(of(LAWFUL[:3] + LAWFUL[3:5] + LAWFUL[6:], order=REAL))
    text = agreement({"wide, usual": usual, "wide, real": other}, paired=False)
    assert "| accuracy forgotten | 1.00 (4 arms) | 1.00 (4 arms) |" in text
    assert "## wide, usual and wide, real" in text
    assert "Blocks that all these arms have: 3 and 2, which are no pairs." in text
    assert agreement({"wide, usual": usual, "wide, real": other}) == ""  # they have no block in common


def test_the_page_of_scales_tells_of_bases_within_a_series_and_of_series_within_a_base(tmp_path: Path) -> None:
    file = tmp_path / "forgetting.jsonl"
    keep(file, [*USUAL, *of(USUAL, identity="b", base="slim")])
    write_forgetting(file)
    bases = told_in(tmp_path)["forgetting-scales.md"]
    keep(file, [*of(USUAL, order=REAL), *of(USUAL, identity="b", base="slim", order=REAL)])
    write_forgetting(file)
    both = told_in(tmp_path)["forgetting-scales.md"]
    assert both.startswith(bases)
    assert [line for line in both.decode().splitlines() if line.startswith("#")] == [
        "# Do bases agree?",
        "## wide and slim",
        "## wide, real and slim, real",
        "# Do series agree?",
        "## wide, usual and wide, real",
        "## slim, usual and slim, real",
    ]


def test_the_command_learns_a_sequence_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def noted(grid: Any, *more: Any) -> list[Any]:
        asked.append(tuple(grid.skills))
        return plan(grid, *more)

    monkeypatch.setattr(forgetting_command, "plan", noted)
    monkeypatch.setattr(forgetting_command, "search", lambda grid, *more, **options: {})
    monkeypatch.setattr(forgetting_command, "identity_of", lambda base: "a")
    output = tmp_path / "forgetting"
    keep(output.with_suffix(".jsonl"), USUAL)
    for more in ([], ["--sequence", "real"], ["--skills", "gcd,date", "--orders", "2"]):
        monkeypatch.setattr("sys.argv", ["forgetting", "--output", str(output), *more])
        forgetting_command.main()
    assert asked == [SEQUENCES[RULES], SEQUENCES["real"], ("gcd", "date")]
    assert len(read(output.with_suffix(".jsonl"))) == len(USUAL)
    monkeypatch.setattr("sys.argv", ["forgetting", "--sequence", "real", "--skills", "gcd,date"])
    with pytest.raises(SystemExit):
        forgetting_command.main()
