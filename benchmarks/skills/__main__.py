"""`python -m benchmarks.skills`: what skills look like, and how much of each another's training set gives away."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from benchmarks.study.options import listed
from benchmarks.study.runs import RESULTS

from .contamination import Overlap, contamination
from .registry import SKILLS, skill
from .skill import Splits

__all__ = ["main", "page"]


def main() -> None:
    """Load the skills, write the page, print it."""
    options = argparse.ArgumentParser(description=__doc__)
    usual = ",".join(name for name, one in SKILLS.items() if one.source != "bigbench")
    options.add_argument("--skills", default=usual, help=f"of {', '.join(SKILLS)}")
    options.add_argument("--output", type=Path, default=RESULTS / "skills.md")
    given = options.parse_args()
    splits = {name: skill(name).splits() for name in listed(given.skills, SKILLS)}
    text = page(splits, contamination(splits))
    given.output.write_text(text, encoding="utf-8")
    print(text)


def page(splits: Mapping[str, Splits], found: Mapping[tuple[str, str], Overlap]) -> str:
    """An example of each skill, and for each what its own and the worst other skill's training set hold of it."""
    rows = [
        "# Skills, and what their training sets hold of held-out sets",
        "",
        "Shares of held-out examples whose answer, and whose word trigrams, stand in a training set: its own, and the "
        "other skill's with most. No prompt stands in any, unless the last column says so.",
        "",
        "| skill | source | prompt → answer | answers, own | trigrams, own | answers, other | "
        "trigrams, other | prompts |",
        "| --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for name, held in splits.items():
        example = held.held_out[0]
        shown = " ".join(f"{example.prompt} → {example.answer}".split()).replace("|", "\\|")
        own = found[name, name]
        others = [found[other, name] for other in splits if other != name] or [dict.fromkeys(own, 0.0)]
        answers, grams = (max(one[kind] for one in others) for kind in ("answers", "ngrams"))
        prompts = max(found[other, name]["prompts"] for other in splits)
        rows.append(
            f"| `{name}` | {SKILLS[name].source} | {shown[-160:]} | {own['answers']:.2f} | {own['ngrams']:.2f} | "
            f"{answers:.2f} | {grams:.2f} | {prompts:.2f} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
