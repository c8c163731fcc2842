"""A constant `bias` over all positions as a control vector of llama.cpp (GGUF architecture `controlvector`)."""

from __future__ import annotations

from pathlib import Path

from .records import Imported, cannot_hold

__all__ = ["write_gguf"]

TARGET = "a llama.cpp control vector"


def write_gguf(adapter: Imported, path: Path, *, model_type: str) -> None:
    """Write `direction.<layer>` tensors, which llama.cpp adds to the output of these blocks at every token.

    Args:
        adapter: of kind `bias`, tied, at positions `all`, on blocks' outputs from block 1 on.
        path: of the file.
        model_type: of the base, e.g. `"llama"`; a hint that llama.cpp prints.

    Raises:
        ReftError: anything else, with the reason: a control vector has no conditions.
        ImportError: the package `gguf` is not installed.
    """
    if adapter.kind != "bias":
        raise cannot_hold(
            TARGET, f"intervention {adapter.kind!r}", "it adds one constant vector per layer: kind 'bias'"
        )
    if adapter.positions != "all":
        raise cannot_hold(
            TARGET, f"positions {adapter.positions!r}", "llama.cpp adds it at every token: positions 'all'"
        )
    for record in adapter.records:
        if record.component != "block_output":
            raise cannot_hold(TARGET, f"component {record.component!r}", "it is added to the output of a block")
        if record.layer < 1:
            raise cannot_hold(TARGET, "an edit of block 0", "its layers run from 1; block 0 has no direction")
    try:
        import gguf
    except ImportError as error:
        raise ImportError("writing a control vector needs the package gguf: pip install gguf") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(adapter.records))
    for record in sorted(adapter.records, key=lambda record: record.layer):
        writer.add_tensor(f"direction.{record.layer}", record.tensors["shift"].float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
