"""`python -m vectors`: write every vector anew."""

from __future__ import annotations

import shutil
from pathlib import Path

from .folder import write_files
from .written import all_files

ROOT = Path(__file__).parents[1] / "data" / "vectors"

if __name__ == "__main__":
    for part in ("good", "bad"):
        shutil.rmtree(ROOT / part, ignore_errors=True)
    write_files(ROOT, all_files())
