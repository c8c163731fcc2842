"""`python -m architectures`, in `tests/`: examine every class, write docs/architectures.md, fail where one fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .classes import FAMILIES, subjects
from .findings import FAILURES
from .page import write_page
from .sweep import Limits, examined, folder_of_results, stored, unexamined

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architectures.md"


def main() -> int:
    """Run the sweep; the exit code is 1 where a verdict is `wrong` or `crashed`."""
    parser = argparse.ArgumentParser(prog="architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="classes to examine; all of them, and the page, without")
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="limit of one class")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "architectures")
    parser.add_argument("--page", action="store_true", help="write the page from the results that lie there")
    given = parser.parse_args()
    known = [one for family in given.family or FAMILIES for one in subjects(family)]
    chosen = [one for one in known if not given.names or one.name in given.names]
    if unknown := set(given.names) - {one.name for one in known}:
        parser.error(f"no such class: {', '.join(sorted(unknown))}")
    folder, limits = folder_of_results(given.results), Limits(seconds=given.seconds)
    if given.page:
        write_page([stored(one, folder) or unexamined(one) for one in chosen], PAGE)
        return 0
    results, failed = [], 0
    for result in examined(chosen, folder, workers=given.workers, limits=limits):
        results.append(result)
        failed += result.verdict in FAILURES
        sys.stdout.write(f"{len(results)}/{len(chosen)} {result.name}: {result.verdict}. {result.reason}\n")
        sys.stdout.flush()
    if len(chosen) == sum(len(subjects(family)) for family in FAMILIES):
        order = {one.name: place for place, one in enumerate(chosen)}
        write_page(sorted(results, key=lambda one: order[one.name]), PAGE)
    sys.stdout.write(f"{failed} of {len(results)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
