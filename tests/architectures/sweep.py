"""Runs every class in a process of its own, with bounded memory and time, and keeps the results on disk.

The processes are forks of one that has imported everything, so a class costs seconds. Results lie in a folder named by
a digest of all code that a verdict depends on: what was begun goes on, and nothing stale is ever read.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import peft
import torch
import transformers

import peft_reft
from peft_reft import hub_format

from .classes import Subject
from .exam import examine
from .findings import Result

__all__ = ["Limits", "examined", "folder_of_results", "stored", "unexamined"]


Exam = Callable[[Subject], Result]


@dataclass(frozen=True)
class Limits:
    """What one class may take: bytes of address space, seconds of a processor, seconds in all."""

    memory: int = 8 << 30
    cpu: int = 60
    seconds: float = 900.0


@dataclass
class _Running:
    subject: Subject
    process: BaseProcess
    results: Connection
    until: float


def folder_of_results(root: Path) -> Path:
    """The folder inside `root` for the code and the packages as they are now."""
    digest = hashlib.sha256()
    for module in (torch, transformers, peft):
        digest.update(f"{module.__name__}={module.__version__};".encode())
    for folder in (Path(peft_reft.__file__).parent, Path(hub_format.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            if not path.name.startswith("test_") and path.name not in ("page.py", "__main__.py"):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return root / digest.hexdigest()[:16]


def stored(subject: Subject, folder: Path) -> Result | None:
    """The result that lies in the folder."""
    path = folder / f"{subject.name}.json"
    return Result.from_dict(json.loads(path.read_text("utf-8"))) if path.exists() else None


def unexamined(subject: Subject) -> Result:
    """What is told of a class that a stopped sweep did not reach."""
    return Result(subject.family, subject.name, "not examined", "the sweep was stopped before")


def examined(
    subjects: Sequence[Subject],
    folder: Path,
    *,
    workers: int = 2,
    limits: Limits = Limits(),
    exam: Exam | None = None,
) -> Iterator[Result]:
    """The results of all classes, those that lie in the folder first; of another exam, if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    left = []
    for subject in subjects:
        result = stored(subject, folder)
        if result is None:
            left.append(subject)
        else:
            yield result
    if left:
        _prepare()
    running: list[_Running] = []
    try:
        while left or running:
            while left and len(running) < workers:
                running.append(_started(left.pop(0), limits, exam or examine))
            wait([one.results for one in running], timeout=1.0)
            for one in list(running):
                result = _result(one, limits)
                if result is not None:
                    running.remove(one)
                    partial = folder / f"{one.subject.name}.partial"
                    partial.write_text(json.dumps(result.to_dict(), indent=1), "utf-8")
                    partial.replace(folder / f"{one.subject.name}.json")
                    yield result
    finally:
        for one in running:
            one.process.kill()


def _prepare() -> None:
    """Import before the first fork what every class needs."""
    examine(Subject("causal", "LlamaForCausalLM", "llama"))
    examine(Subject("encoder-decoder", "BartForConditionalGeneration", "bart"))
    gc.collect()
    gc.freeze()  # else each process copies what the collector touches


def _started(subject: Subject, limits: Limits, exam: Exam) -> _Running:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(subject, theirs, limits, exam), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; torch's are idle
        process.start()
    theirs.close()
    return _Running(subject, process, ours, time.monotonic() + limits.seconds)


def _run(subject: Subject, results: Connection, limits: Limits, exam: Exam) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        result = exam(subject)
    except MemoryError:
        result = Result(subject.family, subject.name, "gave up", f"over {limits.memory >> 30} GiB")
    except Exception as error:
        result = Result(subject.family, subject.name, "crashed", f"the exam itself: {type(error).__name__}: {error}")
    results.send(result.to_dict())


def _result(one: _Running, limits: Limits) -> Result | None:
    """What a process sent, or that it died or was stopped; None while it runs."""
    family, name = one.subject.family, one.subject.name
    if one.results.poll():
        try:
            result = Result.from_dict(one.results.recv())
        except EOFError:
            one.process.join()
            code = one.process.exitcode
            result = Result(family, name, "crashed", f"its process died with exit code {code}")
            if code in (-signal.SIGXCPU, -signal.SIGKILL):
                result = Result(family, name, "gave up", f"over {limits.cpu} seconds of a processor, or killed")
    elif time.monotonic() > one.until:
        one.process.kill()
        result = Result(family, name, "gave up", f"over {limits.seconds:.0f} seconds")
    else:
        return None
    one.process.join()
    return result
