"""`python -m examples.demo`: runs the stages, each in a process of its own, and prints what came out.

The stages talk to a Hub on this machine, so nothing leaves it; the loading stage knows only the repositories' names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tools.loopback_hub import LoopbackHub

from .report import print_report

OUTPUT = Path("demo-output")


def main() -> None:
    """Fetch the base model, train, push, load in a fresh process, report."""
    parser = argparse.ArgumentParser(prog="examples.demo", description=__doc__)
    parser.add_argument("--model", help="id or folder of a causal language model with a chat template")
    model = parser.parse_args().model
    started = time.time()
    OUTPUT.mkdir(exist_ok=True)
    base = model or _run("tools.base_model", capture=True).strip().splitlines()[-1]
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment()}
        if model and not Path(model).exists():  # a model of the real Hub is fetched before the stages leave it
            base = _run("examples.demo.fetch", model, capture=True).strip().splitlines()[-1]
        _run("examples.demo.train", base, str(OUTPUT), environment=environment)
        _run("examples.demo.load", base, str(OUTPUT), environment=environment)
    facts = {name: json.loads((OUTPUT / f"{name}.json").read_text("utf-8")) for name in ("train", "load")}
    print_report(facts["train"], facts["load"], seconds=time.time() - started)


def _run(module: str, *arguments: str, environment: dict[str, str] | None = None, capture: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


if __name__ == "__main__":
    main()
