"""`adapter_model.bin`, looked at without being opened. PEFT's own load reads such files; nothing else does.

A pickle is a program. Of what `torch.save` writes, files are let through that build named tensors and nothing else;
PEFT then opens them with torch's weights-only unpickler (peft/utils/save_and_load.py, `load_peft_weights`).
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

from .errors import FileFormatError

__all__ = ["check_pickle", "refuse_pickle"]

MAX_PROGRAM = 4 * 1024 * 1024
MAX_ENTRIES = 50_000
_CALLED = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict"
    r"|torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
_STEPS = re.compile(
    "PROTO|FRAME|STOP|MARK|GLOBAL|REDUCE|BINPERSID|EMPTY_DICT|SETITEMS?|EMPTY_TUPLE|TUPLE[123]?"
    "|(SHORT_)?BINUNICODE|BININT[12]?|LONG1|NEWTRUE|NEWFALSE|NONE|(LONG_)?BIN(PUT|GET)|MEMOIZE"
)
"""Of the pickle machine: what a dict of tensors needs."""


def refuse_pickle(name: str) -> FileFormatError:
    """The refusal of a pickled weights file where nothing but safetensors is read."""
    return FileFormatError(
        "is a pickle, which is a program and is not read here",
        code="weights.pickle",
        file=name,
        rule="weights are read from safetensors",
        fix="save the adapter again, without safe_serialization=False",
    )


def check_pickle(path: Path) -> None:
    """Refuse a file that does more than build named tensors, without running any of it.

    Raises:
        FileFormatError: no zip as `torch.save` writes it, compressed, or a program that calls or builds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            programs = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(entries) > MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _malformed(path, "is a zip with compressed or too many entries")
            if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM:
                raise _malformed(path, f"has not one program of at most {MAX_PROGRAM} bytes")
            program = archive.read(programs[0])
        for step, argument, _ in pickletools.genops(program):
            if _STEPS.fullmatch(step.name) is None or (
                step.name == "GLOBAL" and _CALLED.fullmatch(str(argument)) is None
            ):
                raise _malformed(path, f"holds the step {step.name} {str(argument)[:80]}")
    except FileFormatError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise _malformed(path, f"is no file of torch.save: {str(error)[:120]}") from error


def _malformed(path: Path, why: str) -> FileFormatError:
    return FileFormatError(
        why,
        code="weights.pickle",
        file=path.name,
        rule="a pickle is opened only if all that it does is to build named tensors",
        fix="save the adapter again, without safe_serialization=False",
    )
