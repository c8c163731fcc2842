"""`python -m tools.site`: build the site into `build/docs/site`, strictly, and look through what came out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .check import problems
from .pages import REFERENCE
from .reference import entries, kinds
from .stage import stage

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Build and check.

    Returns:
        The exit status: 1 where the build warned or the check found something.
    """
    staged = ROOT / "build/docs"
    site = staged / "site"
    stage(ROOT, staged)
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=staged, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    said = [line for line in lines if line.strip() and not line.startswith(("Build ", "No issues "))]
    sys.stderr.writelines(f"{line}\n" for line in said)
    if done.returncode or said:
        return 1
    names = [name for page in REFERENCE for _, group in entries(ROOT, page.source) for name in group]
    found = problems(site, [*names, *kinds(ROOT).values()])
    sys.stderr.writelines(f"{line}\n" for line in found)
    pages = len(list(site.rglob("index.html")))
    print(f"{pages} pages, {len(names)} public names, {len(found)} faults: {site.relative_to(ROOT)}/index.html")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
