"""`python -m tools.release contents|use|extras`, for the Makefile's `dist`, `release-check` and `extras`."""

from __future__ import annotations

import sys
from pathlib import Path

from .bare import EXTRAS, ROOT, resolve, use
from .contents import names_in, problems


def main(what: str, *rest: str) -> int:
    """Do one of them.

    Args:
        what: its name.
        rest: the folder of wheel and sdist, or the extras that are resolved, all by default.

    Returns:
        The exit status.
    """
    if what == "extras":
        refused = 0
        for extra, said in resolve(rest or EXTRAS):
            print(f"{extra:<12} {said}", flush=True)
            refused += said.startswith("REFUSED")
        return int(bool(refused))
    folder = rest[0] if rest else "dist"
    archives = sorted(Path(folder).glob("peft_reft-*"))
    if [path.suffix for path in archives] != [".whl", ".gz"]:
        raise SystemExit(f"{folder} holds {[path.name for path in archives]}, not one wheel and one sdist")
    if what == "use":
        use(archives[0].resolve())
        return 0
    faults = [fault for archive in archives for fault in problems(archive, ROOT)]
    print(*faults, sep="\n", end="\n" if faults else "")
    print(", ".join(f"{archive.name}: {len(names_in(archive))} files" for archive in archives))
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
