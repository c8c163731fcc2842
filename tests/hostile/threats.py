"""The threats, each a change of a good folder and the code and file that a reader must answer with."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME

from . import folders as f

EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@dataclass(frozen=True)
class Threat:
    """A hostile folder: how it is made, and the code of its refusal; `file` where one file is to blame."""

    change: f.Change
    code: str
    file: str | None = None


def empty_tensors(count: int) -> f.Change:
    """A header of many tensors without elements."""
    return lambda folder: f.with_header(folder, json.dumps({f"t{n}": EMPTY for n in range(count)}).encode(), b"")


def deep(folder: Path) -> None:
    f.config_text(folder, '"inference_mode": ', '"x": ' + "[" * 100_000 + "]" * 100_000 + ', "inference_mode": ')


def oversized(folder: Path) -> None:
    f.config_text(folder, '"inference_mode": ', '"x": "' + "y" * 9_000_000 + '", "inference_mode": ')


def length(number: int) -> f.Change:
    """The header's length set to a number."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        (folder / WEIGHTS_NAME).write_bytes(number.to_bytes(8, "little") + data[8:])

    return change


def longer(folder: Path) -> None:
    with (folder / WEIGHTS_NAME).open("ab") as handle:
        handle.write(b"\0" * 4)


def shorter(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_NAME, (folder / WEIGHTS_NAME).stat().st_size - 4)


def hole(folder: Path) -> None:
    header = f.header_of(folder / WEIGHTS_NAME)
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    header[last]["data_offsets"] = [offset + 4 for offset in header[last]["data_offsets"]]
    f.with_header(folder, json.dumps(header).encode())
    longer(folder)


def flip(name: str) -> f.Change:
    """One bit of a file's last bytes changed."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(bytes(data))

    return change


def link(name: str) -> f.Change:
    """A file moved out of the folder, with a link in its place."""

    def change(folder: Path) -> None:
        moved = (folder / name).rename(folder.parent / f"elsewhere-{name}")
        (folder / name).symlink_to(moved)

    return change


def pipe(name: str) -> f.Change:
    """A pipe in a file's place: opened, it would be waited for."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def torn(name: str) -> f.Change:
    """One file of another save, as when a revision moves between two requests."""

    def change(folder: Path) -> None:
        other = f.good(folder.parent / "other", seed=5, dropout=0.5)
        shutil.copyfile(other / name, folder / name)

    return change


def added(name: str, shape: tuple[int, ...] = (2, 32), dtype: torch.dtype = torch.float32) -> f.Change:
    """A tensor of a name that no part of the adapter has."""
    return f.tensors(lambda held: held.update({name: torch.ones(shape, dtype=dtype)}))


def path(value: Any) -> f.Change:
    """A file of the manifest that lies at another path."""
    return f.manifest(lambda content: content["files"][1].update(path=value))


BLOCK = "base_model.model.model.layers.0"
NUMBERS = {"NaN": ("NaN", "json.number"), "1e999": ("1e999", "json.number"), "-Infinity": ("-Infinity", "json.number")}

THREATS: dict[str, Threat] = {
    "header: 200,000 tensors": Threat(empty_tensors(200_000), "integrity.file", WEIGHTS_NAME),
    "header: 200,000 tensors, described": Threat(
        lambda folder: (empty_tensors(200_000)(folder), f.redescribe(folder)), "tensors", WEIGHTS_NAME
    ),
    "header: 10,001 tensors": Threat(
        lambda folder: (empty_tensors(10_001)(folder), f.redescribe(folder)), "tensors", WEIGHTS_NAME
    ),
    **{
        f"header: {name}": Threat(
            lambda folder, change=change: (change(folder), f.redescribe(folder)),  # type: ignore[misc]
            code,
            WEIGHTS_NAME,
        )
        for name, change, code in (
            ("length 2^64-1", length(2**64 - 1), "tensors"),
            ("length over the file", length(2**19), "tensors"),
            ("length 0", length(0), "json.syntax"),
            ("bytes after the data", longer, "tensors"),
            ("truncated data", shorter, "tensors"),
            ("a hole", hole, "tensors"),
            ("8 bytes", lambda folder: os.truncate(folder / WEIGHTS_NAME, 7), "tensors"),
            ("a key twice", lambda folder: f.header_text(folder, "{", '{"__metadata__":{},'), "json.duplicate"),
            (
                "a field twice",
                lambda d: f.header_text(d, '"dtype"', '"dtype":"F16","dtype"'),
                "json.duplicate",
            ),
            ("-0 as an offset", lambda folder: f.header_text(folder, "[0,", "[-0,"), "json.number"),
            ("1.0 as a size", lambda folder: f.header_text(folder, '"shape":[2', '"shape":[2.0'), "tensors"),
            ("1e999", lambda folder: f.header_text(folder, '"shape":[2', '"shape":[1e999'), "json.number"),
            ("negative size", lambda folder: f.header_text(folder, '"shape":[2', '"shape":[-2'), "tensors"),
            ("huge size", lambda folder: f.header_text(folder, '"shape":[2', '"shape":[281474976710655'), "tensors"),
            ("unknown dtype", lambda folder: f.header_text(folder, '"F32"', '"F8_E4M3"'), "tensors"),
            ("dtype that is a list", lambda folder: f.header_text(folder, '"F32"', '["F32"]'), "tensors"),
            ("leading space", lambda folder: f.header_text(folder, "{", " {"), "tensors"),
            ("metadata with a number", lambda folder: f.header_text(folder, '"pt"', "1"), "tensors"),
            ("metadata that is a list", lambda folder: f.header_text(folder, '{"format":"pt"}', "[]"), "tensors"),
            ("half a surrogate", lambda folder: f.header_text(folder, '"pt"', '"\\ud800"'), "json.syntax"),
        )
    },
    "config: a key twice": Threat(
        lambda folder: f.config_text(folder, '"reft": {', '"reft": {}, "reft": {'), "json.duplicate", CONFIG_NAME
    ),
    "config: a field of reft twice": Threat(
        lambda folder: f.config_text(folder, '"turns"', '"turns": "each", "turns"'), "json.duplicate", CONFIG_NAME
    ),
    **{
        f"config: {name}": Threat(
            lambda folder, text=text: f.config_text(folder, '"dropout": 0.0', f'"dropout": {text}'),  # type: ignore[misc]
            code,
            CONFIG_NAME,
        )
        for name, (text, code) in NUMBERS.items()
    },
    "config: 5,000 digits": Threat(
        lambda folder: f.config_text(folder, '"dropout": 0.0', '"dropout": ' + "9" * 5000), "json.syntax", CONFIG_NAME
    ),
    "config: deep nesting": Threat(deep, "json.depth", CONFIG_NAME),
    "config: 9 MB": Threat(oversized, "json.size", CONFIG_NAME),
    "config: no UTF-8": Threat(
        lambda folder: ((folder / CONFIG_NAME).write_bytes(b'{"\xff": 1}'), f.redescribe(folder)),
        "json.syntax",
        CONFIG_NAME,
    ),
    "config: a list": Threat(
        lambda folder: ((folder / CONFIG_NAME).write_text("[]"), f.redescribe(folder)), "json.object", CONFIG_NAME
    ),
    "manifest: a key twice": Threat(
        lambda folder: (folder / MANIFEST_NAME).write_text(
            (folder / MANIFEST_NAME).read_text().replace("{", '{"files": [],', 1)
        ),
        "json.duplicate",
        MANIFEST_NAME,
    ),
    "huge rank": Threat(f.reft(r=200_000_000), "config.value"),
    "huge rank within the limit": Threat(f.reft(r=65_536), "config.value"),
    "a rank that the tensors lack": Threat(f.reft(r=3), "tensors.unfit"),
    "NaN weights": Threat(f.each(".weight", lambda t: t.fill_(float("nan"))), "tensors.finite", WEIGHTS_NAME),
    "infinite weights": Threat(f.each(".bias", lambda t: t.fill_(float("inf"))), "tensors.finite", WEIGHTS_NAME),
    "NaN in half precision": Threat(
        f.each(".bias", lambda t: t.fill_(float("nan")).half()), "tensors.finite", WEIGHTS_NAME
    ),
    "NaN in bfloat16": Threat(
        f.each(".bias", lambda t: t.fill_(float("-inf")).bfloat16()), "tensors.finite", WEIGHTS_NAME
    ),
    "a value beyond float32": Threat(
        f.each(".bias", lambda t: t.double().fill_(1e300)), "tensors.finite", WEIGHTS_NAME
    ),
    "a missing tensor": Threat(f.tensors(lambda held: held.pop(sorted(held)[0])), "tensors.unfit"),
    "a unit that no term has": Threat(added(f"{BLOCK}.reft.reft_7.weight"), "tensors.unfit"),
    "a tensor that the kind lacks": Threat(added(f"{BLOCK}.reft.reft_0.more"), "tensors.unfit"),
    "a tensor beside the adapter": Threat(added(f"{BLOCK}.mlp.gate_proj.weight", (48, 32)), "tensors.extra"),
    "a tensor without the prefix": Threat(added("more"), "tensors.extra"),
    "a unit number in other digits": Threat(added(f"{BLOCK}.reft.reft_٠.weight"), "tensors.unfit"),
    "a parameter of integers": Threat(
        f.each(".bias", lambda t: torch.ones(t.shape, dtype=torch.int32)), "tensors.unfit"
    ),
    "a tensor of another shape": Threat(f.each(".bias", lambda t: t[:1]), "tensors.unfit"),
    "path: up": Threat(path("../adapter_model.safetensors"), "manifest", MANIFEST_NAME),
    "path: absolute": Threat(path("/etc/passwd"), "manifest", MANIFEST_NAME),
    "path: backslash": Threat(path("..\\adapter_model.safetensors"), "manifest", MANIFEST_NAME),
    "path: drive": Threat(path("C:adapter_model.safetensors"), "manifest", MANIFEST_NAME),
    "path: empty part": Threat(path(".//adapter_model.safetensors"), "manifest", MANIFEST_NAME),
    "path: no text": Threat(path(["adapter_model.safetensors"]), "manifest", MANIFEST_NAME),
    "a path in layers_pattern": Threat(f.reft(layers_pattern="../layers"), "config.value"),
    "a pattern that backtracks": Threat(f.reft(layers_pattern="(a+)+$"), "config.value"),
    "pickled weights beside": Threat(
        lambda folder: (folder / PICKLE_NAME).write_bytes(b"cos\nsystem\n(S'true'\ntR."),
        "weights.pickle",
        PICKLE_NAME,
    ),
    **{f"link: {name}": Threat(link(name), "link", name) for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)},
    **{f"pipe: {name}": Threat(pipe(name), "file.kind", name) for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)},
    "bit flip: weights": Threat(flip(WEIGHTS_NAME), "integrity.file", WEIGHTS_NAME),
    "bit flip: manifest": Threat(flip(MANIFEST_NAME), "json.syntax", MANIFEST_NAME),
    "torn: config of another revision": Threat(torn(CONFIG_NAME), "integrity.file", CONFIG_NAME),
    "torn: weights of another revision": Threat(torn(WEIGHTS_NAME), "integrity.file", WEIGHTS_NAME),
    "torn: manifest of another revision": Threat(torn(MANIFEST_NAME), "integrity.file", CONFIG_NAME),
    "torn: config of another revision, described": Threat(
        lambda folder: (torn(CONFIG_NAME)(folder), f.redescribe(folder)), "manifest.config", MANIFEST_NAME
    ),
    "torn: weights of another revision, described": Threat(
        lambda folder: (torn(WEIGHTS_NAME)(folder), f.redescribe(folder)), "integrity.tensors", WEIGHTS_NAME
    ),
    "no manifest": Threat(lambda folder: (folder / MANIFEST_NAME).unlink(), "manifest.missing"),
    "no weights": Threat(lambda folder: (folder / WEIGHTS_NAME).unlink(), "manifest", MANIFEST_NAME),
    "manifest: another tensor": Threat(
        f.manifest(lambda content: content["tensors"].popitem()), "integrity.tensors", WEIGHTS_NAME
    ),
    "manifest: a feature that is required": Threat(
        f.manifest(lambda content: content.update(required_features=["x"])), "manifest.feature", MANIFEST_NAME
    ),
    "manifest: unknown field": Threat(f.manifest(lambda content: content.update(x=1)), "manifest", MANIFEST_NAME),
    "manifest: another major": Threat(
        f.manifest(lambda c: c.update(spec_version="2.0")), "config.version", MANIFEST_NAME
    ),
    "manifest: digest in capitals": Threat(
        f.manifest(lambda c: c["files"][0].update(sha256=c["files"][0]["sha256"].upper())), "manifest", MANIFEST_NAME
    ),
    "manifest: hidden size of 0": Threat(
        f.manifest(lambda c: c["base_model"].update(hidden_size=0)), "manifest", MANIFEST_NAME
    ),
    "unknown field": Threat(f.reft(x=1), "config.unknown"),
    "unknown kind": Threat(f.reft(intervention="mystery", kinds={"mystery": 1}), "kind.unknown"),
    "another version of a kind": Threat(f.reft(kinds={"loreft": 2}), "kind.version"),
    "another major": Threat(f.reft(spec_version="2.0"), "config.version"),
    "a higher minor": Threat(f.reft(spec_version="1.1"), "config.version"),
    "a version in other digits": Threat(f.reft(spec_version="1.٠"), "config.version"),
    "another spelling of the version": Threat(f.reft(spec_version="1.00"), "config.version"),
    "positions outside the grammar": Threat(f.reft(positions="f7+x7"), "positions.syntax"),
    "positions in other digits": Threat(f.reft(positions="f٣"), "positions.syntax"),
    "behaviour in the envelope": Threat(f.config(lambda c: c.update(positions="f9")), "config.envelope"),
    "act_fn that is a list": Threat(f.reft(act_fn=["relu"]), "config.value"),
    "intervention that is a list": Threat(f.reft(intervention=["loreft"]), "kind.unknown"),
    "options with a number as text": Threat(f.reft(options={"x": {}}), "config.value"),
    "task_type that is unknown": Threat(f.config(lambda c: c.update(task_type="MAGIC")), "config.envelope"),
    "task_type that is a list": Threat(f.config(lambda c: c.update(task_type=[1])), "config.envelope"),
    "peft_type of another tuner": Threat(f.config(lambda c: c.update(peft_type="LORA")), "config.envelope"),
    "a key 'self'": Threat(f.config(lambda c: c.update(self=1)), "config.envelope"),
    "inference_mode that is a text": Threat(f.config(lambda c: c.update(inference_mode="yes")), "config.envelope"),
    "modules_to_save: the adapter's name": Threat(
        f.config(lambda c: c.update(modules_to_save=["default"])), "config.envelope"
    ),
    "modules_to_save: reft": Threat(f.config(lambda c: c.update(modules_to_save=["reft"])), "config.envelope"),
    "modules_to_save: a pattern": Threat(f.config(lambda c: c.update(modules_to_save=["(a+)+$"])), "config.envelope"),
    "modules_to_save: a text": Threat(f.config(lambda c: c.update(modules_to_save="lm_head")), "config.envelope"),
    "modules_to_save without its tensors": Threat(
        f.config(lambda c: c.update(modules_to_save=["lm_head"])), "tensors.missing"
    ),
    "modules_to_save: a name of parameters": Threat(
        lambda folder: (
            added(f"{BLOCK}.mlp.gate_proj.weight", (48, 32))(folder),
            f.config(lambda c: c.update(modules_to_save=["weight"]))(folder),
        ),
        "config.envelope",
    ),
    "token ids that are texts": Threat(f.config(lambda c: c.update(trainable_token_indices=["a"])), "config.envelope"),
    "token ids below zero": Threat(f.config(lambda c: c.update(trainable_token_indices=[-1])), "config.envelope"),
    "token ids without their tensors": Threat(
        f.config(lambda c: c.update(trainable_token_indices=[1, 2])), "tensors.missing"
    ),
}
