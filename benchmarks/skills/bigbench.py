"""Skills of BIG-bench (Apache-2.0), from the source distribution `bigbench`: fetched at run time, never committed.

Its files carry a canary against training on them; what is learnt here is learnt to be measured, and published nowhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

from tools.base_model import cache_folder

from .skill import Example, Skill, SkillError, Splits, share_splits, stated

__all__ = ["ARCHIVE", "TASKS", "bigbench_skills", "examples_of"]

RELEASE = "bigbench-1.0.0"
ARCHIVE = f"{RELEASE}.tar.gz"
TASKS = ("entailed_polarity", "hyperbaton", "intent_recognition", "object_counting", "tense")


def bigbench_skills() -> dict[str, Skill]:
    """Name → skill; the archive is fetched when one is loaded first."""
    return {name: Skill(name, "bigbench", partial(_load, name), stated) for name in TASKS}


def examples_of(task: dict[str, Any]) -> list[Example]:
    """The examples of a `task.json`: generated answers as they are, choices as the text of the best one.

    Raises:
        SkillError: an example with neither a target nor scores of targets.
    """
    found = []
    prefix, suffix = task.get("example_input_prefix", ""), task.get("example_output_prefix", "")
    for entry in task["examples"]:
        if "target" in entry:
            target = entry["target"]
            answer = target[0] if isinstance(target, list) else target
        elif "target_scores" in entry:
            best = max(entry["target_scores"].values())
            answer = next(text for text, score in entry["target_scores"].items() if score == best)
        else:
            raise SkillError(f"an example of {task.get('name')!r} has no target: {str(entry)[:80]}")
        prompt = f"{prefix.lstrip()}{entry['input']}"
        if "target_scores" in entry and task.get("append_choices_to_input", True):
            prompt += "".join(f"\nchoice: {text}" for text in sorted(entry["target_scores"]))
        found.append(Example(f"{prompt}{suffix.rstrip()}".strip(), str(answer).strip()))
    return found


def _load(name: str, sizes: tuple[int, int, int], seed: int) -> Splits:
    file = _unpacked(name, cache_folder() / RELEASE)
    return share_splits(name, examples_of(json.loads(file.read_text(encoding="utf-8"))), sizes, seed)


def _unpacked(name: str, folder: Path) -> Path:
    """The task's file; all tasks of `TASKS` are taken out of the archive in one pass."""
    file = folder / f"{name}.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {f"{RELEASE}/bigbench/benchmark_tasks/{task}/task.json": task for task in TASKS}
        with tarfile.open(_archive(cache_folder() / "downloads")) as opened:
            for member in opened:
                task = wanted.pop(member.name, None)
                content = opened.extractfile(member) if task and member.isfile() else None
                if content is not None:
                    (folder / f"{task}.part").write_bytes(content.read())
                    (folder / f"{task}.part").replace(folder / f"{task}.json")
                if not wanted:
                    break
    if not file.is_file():
        raise SkillError(f"{ARCHIVE} holds no task.json of {name!r}")
    return file


def _archive(folder: Path) -> Path:
    if not (folder / ARCHIVE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "bigbench"]
        done = subprocess.run(
            [*command, "--dest", str(folder), RELEASE.replace("-", "==")], capture_output=True, text=True, check=False
        )
        if not (folder / ARCHIVE).is_file():
            raise SkillError(f"{ARCHIVE} (358 MB) cannot be had: {done.stderr.strip()[-300:]}")
    return folder / ARCHIVE
