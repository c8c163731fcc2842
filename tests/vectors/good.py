"""The folders that a reader reads: name → what they show, how they are made, and the calls they are tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .adapters import HIDDEN, adapter, case, case_of_all, expected_adapter
from .arithmetic import numbers
from .folder import INDEX, Adapter, dump, pack, safetensors_file, sha256

__all__ = ["GOOD", "Good", "bundle_files", "lora_files"]

Files = dict[str, bytes]
MIXED = {
    "input_ids": [[4, 5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14, 15]],
    "attention_mask": [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]],
    "labels": [[-100, -100, -100, -100, -100, 9, 10], [-100, -100, -100, -100, 13, 14, 15]],
}
"""Left padding; prompts of five and of two tokens, followed by a completion."""
PREFILL = {
    "input_ids": [[4, 5, 6, 7, 8, 9], [10, 11, 12, 0, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
}
"""Right padding, no labels: all is prompt."""
TURNS = {
    "input_ids": [[4, 5, 6, 7, 8, 9, 10, 11, 12]],
    "attention_mask": [[1, 1, 1, 1, 1, 1, 1, 1, 1]],
    "labels": [[-100, -100, -100, 7, -100, -100, -100, 11, -100]],
}
"""Two answers, of one token each, and a last token that nothing follows."""
TOLD = {**TURNS, "prompt_mask": [[1, 1, 1, 0, 1, 1, 0, 0, 0]]}
del TOLD["labels"]
PACKED = {
    "input_ids": [[4, 5, 6, 7, 8, 9, 10, 11]],
    "attention_mask": [[1, 1, 1, 1, 1, 1, 1, 1]],
    "position_ids": [[0, 1, 2, 3, 0, 1, 2, 3]],
    "labels": [[-100, -100, -100, 7, -100, -100, 10, 11]],
}
"""Two sequences in one row."""
NAMED = {
    "input_ids": [[1, 5, 3, 7, 3, 9], [1, 3, 12, 13, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]],
}

SUPERVISED = {**PREFILL, "labels": [[4, 5, -100, 7, 8, 9], [-100, 11, 12, -100, -100, -100]]}
"""A first row without a prompt: its first token is supervised."""
TOLD_LATE = {**TURNS, "prompt_mask": [[0, 0, 1, 1, 0, 0, 1, 0, 0]]}
"""Text before the first run of the mask, and labels that say otherwise."""
PACKED_JUMP = {**PACKED, "position_ids": [[0, 1, 4, 5, 0, 3, 7, 8]]}
"""Positions that jump up inside a sequence."""
NAMED_LABELS = {**NAMED, "labels": [[-100, -100, 3, 7, 3, 9], [-100, -100, 12, 13, -100, -100]]}
"""The named token stands in prompt and completion."""
LEADING = {"input_ids": TURNS["input_ids"], "attention_mask": TURNS["attention_mask"]}
TURNS_MASKED = {**LEADING, "prompt_mask": [[0, 1, 1, 0, 0, 1, 0, 0, 0]]}
"""Text that stands before the first asking token, two turns."""


@dataclass(frozen=True)
class Good:
    """A good folder: what it shows, its files, and what is expected of it."""

    about: str
    make: Callable[[str], tuple[Files, dict[str, Any]]]


def single(
    about: str,
    *batches: Mapping[str, Any],
    change: Callable[[Adapter], object] | None = None,
    on: tuple[str, ...] = (),
    **fields: Any,
) -> Good:
    """One adapter at the root. `change` is made before it is written; `on`: subspaces that are tried alone."""

    def make(name: str) -> tuple[Files, dict[str, Any]]:
        made = adapter(name, **fields)
        if change is not None:
            change(made)
        reft = made.config["reft"]
        completes = made.config["task_type"] != "FEATURE_EXTRACTION"
        cases = [case(name, reft, batch, completes=completes) for batch in batches]
        cases += [case(name, reft, batches[0], subspaces=[chosen]) for chosen in on]
        files = made.written()
        return files, {"adapters": {"default": expected_adapter(made, ".")}, "cases": cases}

    return Good(about, make)


def lora_files(seed: str, **config: Any) -> Files:
    """PEFT's own folder of a LoRA on `q_proj` of every block."""
    stored = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-base",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
        "inference_mode": True,
        **config,
    }
    tensors = {}
    for block in range(2):
        at = f"base_model.model.model.layers.{block}.self_attn.q_proj"
        tensors[f"{at}.lora_A.weight"] = pack(numbers(f"{seed}/A{block}", 2, HIDDEN))
        tensors[f"{at}.lora_B.weight"] = pack(numbers(f"{seed}/B{block}", HIDDEN, 2))
    return {
        "adapter_config.json": dump(stored),
        "adapter_model.safetensors": safetensors_file(tensors, metadata={"format": "pt"}),
    }


def bundle_files(members: Mapping[tuple[str, str], Files]) -> Files:
    """Members by (name, kind) at their places, and the index."""
    files, entries = {}, []
    for (name, kind), own in members.items():
        folder = f"reft/{name}" if kind == "reft" else "." if name == "default" else name
        placed = {file if folder == "." else f"{folder}/{file}": data for file, data in own.items()}
        files |= placed
        order = ("adapter_config.json", "adapter_model.safetensors", "reft_manifest.json")
        infos = [
            {"path": path, "size": len(placed[path]), "sha256": sha256(placed[path])}
            for path in sorted(placed, key=lambda path: order.index(path.rpartition("/")[2]))
        ]
        entries.append({"name": name, "kind": kind, "folder": folder, "files": infos})
    files[INDEX] = dump({"spec_version": "1.0", "members": entries})
    return files


def bundle(about: str, loras: tuple[str, ...], edits: Mapping[str, Mapping[str, Any]], **of_lora: Any) -> Good:
    """LoRAs and ReFTs in one folder; the cases are of each ReFT by itself, and of all at once."""

    def make(name: str) -> tuple[Files, dict[str, Any]]:
        made = {edit: adapter(f"{name}/{edit}", **fields) for edit, fields in edits.items()}
        members = {(lora, "lora"): lora_files(f"{name}/{lora}", **of_lora) for lora in loras}
        members |= {(edit, "reft"): one.written() for edit, one in made.items()}
        expected: dict[str, Any] = {
            lora: {"kind": "lora", "folder": "." if lora == "default" else lora} for lora in loras
        }
        expected |= {edit: expected_adapter(one, f"reft/{edit}") for edit, one in made.items()}
        cases = {edit: [case(f"{name}/{edit}", one.config["reft"], MIXED)] for edit, one in made.items()}
        together = case_of_all(name, {edit: one.config["reft"] for edit, one in made.items()}, MIXED)
        return bundle_files(members), {"adapters": expected, "cases_of": cases, "case_of_all": together}

    return Good(about, make)


def otherwise_written(made: Adapter) -> None:
    """The same content in other bytes: no blanks, escapes, another order of tensors, a padded header."""
    made.write = lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()
    made.tensors = dict(reversed(made.tensors.items()))
    made.weights = lambda held: safetensors_file(held, pad=37)
    made.manifest["annotations"] = {"made in": "Zürich", "deep": [{"any": [None, 1.5e-3, True]}]}


def higher_minor(made: Adapter) -> None:
    made.config["reft"]["spec_version"] = made.manifest["spec_version"] = "1.7"


def grown_envelope(made: Adapter) -> None:
    made.config |= {"eva_config": None, "a_field_of_a_later_peft": {"x": [1, 2]}}
    made.config["nested"] = json.loads("[" * 31 + "]" * 31)  # 32 deep with the config itself: as deep as allowed


def saved_head() -> dict[str, Any]:
    return {"base_model.model.lm_head.weight": pack(numbers("lm_head", 16, HIDDEN))}


def saved_mlp() -> dict[str, Any]:
    at = "base_model.model.model.layers.1.mlp."
    return {f"{at}{name}_proj.weight": pack(numbers(name, 8, HIDDEN)) for name in ("gate", "up", "down")}


def trained_tokens() -> dict[str, Any]:
    delta = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    return {delta: pack(numbers("tokens", 2, HIDDEN))}


KINDS: dict[str, Good] = {
    f"kind_{kind}": single(f"h′ of the kind `{kind}`", PREFILL, intervention=kind, r=2, positions="f2+l2")
    for kind in (
        "loreft",
        "noreft",
        "direft",
        "direft_orthogonal",
        "consreft",
        "lobireft",
        "bias",
        "red",
        "gated",
        "sae",
        "clamp",
        "prosv",
        "adapter",
        "distribution",
    )
}
ACTIVATIONS = ("gelu", "gelu_tanh", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "tanh")
POSITIONS = {
    "clipped": ("the first term takes its tokens first; a prompt of two tokens", "f3+l5", MIXED),
    "suffix_first": ("the order of the terms is the order in which they claim", "l2+f7", MIXED),
    "windows": ("windows count from either end of the prompt", "p[1:-1]+p[-1:]", MIXED),
    "window_past_the_ends": ("a window that reaches past the prompt's ends is clipped", "p[-9:2]+p[3:99]", MIXED),
    "prompt": ("the whole prompt and nothing of the completion", "prompt", MIXED),
    "generated": ("what follows the prompt: its first token, then the rest", "g[0:1]+generated", MIXED),
    "exclusion": ("everything but the second half of the prompt", "all-l2-f1", MIXED),
    "spelling": ("blanks, leading zeros, -0", " f02 +\tp[ -0 : 03 ]-l1\n", PREFILL),
    "padding_right": ("padding is never counted and never edited", "f2+l3", PREFILL),
    "no_prompt": ("without a prompt f counts from the sequence's start", "f2+all", SUPERVISED),
    "no_prompt_generated": ("without a prompt all tokens follow it", "g[1:3]+generated", SUPERVISED),
    "told_by_mask_generated": ("what precedes the mask's first run does not follow it", "generated", TOLD_LATE),
    "told_by_mask": ("a mask wins over labels; its first run is the prompt, not what precedes it", "f1+l1", TOLD_LATE),
    "packed_jumps": ("a sequence begins where position_ids do not grow, not where they jump", "f1+l1", PACKED_JUMP),
    "packed": ("each sequence of a packed row by itself", "f1+l1", PACKED),
}

GOOD: dict[str, Good] = {
    **KINDS,
    "kind_reft_r1": single(
        "the mean over the edited tokens of a sequence",
        MIXED,
        intervention="reft_r1",
        options={"topk": 2},
        positions="prompt",
    ),
    "kind_rotated_interchange": single(
        "a variable set to one of its values",
        PREFILL,
        intervention="rotated_interchange",
        r=2,
        options={"variable": "S1", "values": ["low", 2, True, 2.5], "value": 2.5},
    ),
    "kind_rotated_interchange_subspaces": single(
        "rows of R and columns of the points",
        PREFILL,
        intervention="rotated_interchange",
        r=3,
        options={"values": ["a", "b"], "value": "b"},
        subspaces={"first": [0, 1], "rest": [1, 3]},
        on=("rest",),
        layers_to_transform=[0],
    ),
    "kind_adapter_activation": single(
        "the activation stands between the two maps", PREFILL, intervention="adapter", r=2, act_fn="silu"
    ),
    "kind_heads": single(
        "all heads of a layer, gates of each open in part",
        PREFILL,
        intervention="heads",
        component="heads",
        options={"heads": 2, "gates": True},
        positions="prompt",
        spec_version="1.2",
    ),
    "kind_heads_without_gates": single(
        "the same kind at another component, without gates",
        PREFILL,
        intervention="heads",
        options={"heads": 4},
        positions="prompt",
    ),
    "component_heads": single(
        "another kind at the input of the output projection, whole",
        PREFILL,
        r=2,
        component="heads",
        spec_version="1.2",
    ),
    "kind_noreft_add_bias": single(
        "an option that brings a tensor", PREFILL, intervention="noreft", r=2, options={"add_bias": True}
    ),
    "activations": single(
        "every activation, one group each",
        PREFILL,
        r=1,
        intervention="direft",
        interventions=[
            {"act_fn": act, "positions": f"p[{n % 6}:{n % 6 + 1}]", "layers_to_transform": n // 6}
            for n, act in enumerate(ACTIVATIONS)
        ],
    ),
    "activation_of_loreft": single("the activation falls on Wh + b alone", PREFILL, r=2, act_fn="relu"),
    **{
        f"activation_of_{kind}": single(
            "the activation falls on Wh + b alone", PREFILL, r=2, act_fn="relu", intervention=kind
        )
        for kind in ("noreft", "direft_orthogonal", "gated")
    },
    "kind_reft_r1_default": single(
        "the mean over eight where the options say nothing", TURNS, intervention="reft_r1", positions="all"
    ),
    "rank_nearly_equal_rows": single(
        "rotations of a condition of half a million", PREFILL, r=2, positions="f2", layers_to_transform=[0]
    ),
    "modules_to_save_by_end": single(
        "a module named by the end of its path",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        component="attention_output",
        envelope={"modules_to_save": ["1.mlp"]},
        beside=saved_mlp(),
    ),
    "turns_each_unasked": single(
        "where the first token is supervised none asks: one turn without a prompt",
        SUPERVISED,
        r=2,
        positions="f2+all",
        turns="each",
        share_weights=False,
        layers_to_transform=[0],
    ),
    "task_of_no_name": single(
        "where no task is named, a base that generates has completions",
        MIXED,
        r=2,
        positions="l1",
        layers_to_transform=[0],
        envelope={"task_type": None},
    ),
    "task_without_completion": single(
        "where the task has no completion labels say nothing of a prompt",
        MIXED,
        r=2,
        positions="f1+l1",
        layers_to_transform=[0],
        envelope={"task_type": "FEATURE_EXTRACTION"},
    ),
    "layers_unsorted": single("the order of a list of layers says nothing", PREFILL, r=2, layers_to_transform=[1, 0]),
    "vocabulary_of_another_size": single(
        "the size of the vocabulary is not compared",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        change=lambda made: made.manifest["base_model"].update(vocab_size=99),
    ),
    "base_unknown": single(
        "a base of which only the hidden size is known",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        change=lambda made: made.manifest.update(base_model={"hidden_size": HIDDEN, "config": None}),
    ),
    "layers_pattern_list": single(
        "names of stacks by their ends, of which one picks none",
        PREFILL,
        r=2,
        layers_pattern=["blocks", "layers"],
    ),
    "grown_vocabulary": single(
        "a grown embedding and head beside the edits, which no field names",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        beside=saved_head(),
    ),
    **{
        f"positions_{name}": single(about, batch, r=2, positions=spec, share_weights=False, layers_to_transform=[0])
        for name, (about, spec, batch) in POSITIONS.items()
    },
    "positions_special": single(
        "every occurrence of a special token, told by its id",
        NAMED,
        r=2,
        share_weights=False,
        positions="tok(<sep>)+l2",
        layers_to_transform=1,
        special_tokens={"tokenizer": "sha256:" + "5e" * 32, "ids": {"<sep>": 3}},
    ),
    "positions_special_anywhere": single(
        "a special token of the completion too",
        NAMED_LABELS,
        r=2,
        share_weights=False,
        positions="f1+tok(<sep>)",
        layers_to_transform=1,
        special_tokens={"tokenizer": "sha256:" + "5e" * 32, "ids": {"<sep>": 3}},
    ),
    "positions_special_excluded": single(
        "everything but the start token",
        NAMED,
        r=2,
        positions="all-tok(<s>)",
        layers_to_transform=1,
        special_tokens={"tokenizer": "sha256:" + "5e" * 32, "ids": {"<s>": 1}},
    ),
    "turns_each": single(
        "every answer has a prompt of its own",
        TURNS,
        TOLD,
        r=2,
        positions="f1+l1",
        turns="each",
        share_weights=False,
        layers_to_transform=[0],
    ),
    "turns_each_leading": single(
        "what stands before the first asking token is of the first turn, and of no prompt",
        TURNS_MASKED,
        r=2,
        positions="f1+l1+all",
        turns="each",
        share_weights=False,
        layers_to_transform=[0],
    ),
    "turns_first": single(
        "the prompt ends before the first answer",
        TURNS,
        TOLD,
        r=2,
        positions="f1+l1+generated",
        share_weights=False,
        layers_to_transform=[0],
    ),
    "tied": single("one unit for both terms", MIXED, r=2, positions="f2+l2", share_weights=True),
    "layers_from_the_end": single("layers count from either end", PREFILL, r=2, layers_to_transform=[-1]),
    "layers_pattern": single("the stack of blocks by its name", PREFILL, r=2, layers_pattern="model.layers"),
    "component_block_input": single("the block's input", PREFILL, r=2, component="block_input"),
    "component_attention_output": single("attention before its residual", PREFILL, r=2, component="attention_output"),
    "component_mlp_output": single("the feed-forward part before its residual", PREFILL, r=2, component="mlp_output"),
    "component_head_output": single(
        "one head: half of the output projection's input", PREFILL, r=2, component="head_output[1]"
    ),
    "groups": single(
        "two groups at one site add; what a group leaves out, the top level says",
        MIXED,
        r=2,
        positions="f2",
        interventions=[
            {"layers_to_transform": [0]},
            {"intervention": "bias", "positions": "all"},
            {
                "r": 3,
                "intervention": "direft",
                "layers_to_transform": [1],
                "positions": "f1+l1",
                "share_weights": False,
            },
        ],
    ),
    "twin_groups": single(
        "two equal groups: units of their own, and their edits add",
        PREFILL,
        r=1,
        layers_to_transform=[0],
        positions="f1+l1",
        interventions=[{"share_weights": False}, {"share_weights": False}],
    ),
    "subspaces": single(
        "named rows of R, alone or together",
        PREFILL,
        r=4,
        positions="prompt",
        layers_to_transform=[0],
        subspaces={"style": [0, 1], "facts": [2, 4]},
        on=("style", "facts"),
    ),
    **{
        f"subspaces_{kind}": single(
            f"every tensor of r rows of `{kind}` loses those that are off",
            PREFILL,
            intervention=kind,
            r=3,
            positions="f2",
            layers_to_transform=[0],
            subspaces={"one": [0, 1], "rest": [1, 3]},
            on=("one", "rest"),
            **({"options": {"add_bias": True}} if kind == "noreft" else {}),
        )
        for kind in ("noreft", "sae", "gated")
    },
    "modules_to_save": single(
        "a head saved in full beside the edits",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        envelope={"modules_to_save": ["lm_head"]},
        beside=saved_head(),
    ),
    "trainable_tokens": single(
        "rows of the embedding beside the edits",
        PREFILL,
        r=2,
        layers_to_transform=[0],
        envelope={"trainable_token_indices": [4, 5]},
        beside=trained_tokens(),
    ),
    **{
        f"dtype_{dtype}": single(f"tensors in {dtype}", PREFILL, r=2, layers_to_transform=[0], dtype=dtype)
        for dtype in ("F16", "BF16", "F64")
    },
    "written_otherwise": single(
        "the same content in other bytes", PREFILL, r=2, layers_to_transform=[0], change=otherwise_written
    ),
    "higher_minor": single(
        "a higher minor version of which all is known", PREFILL, r=2, layers_to_transform=[0], change=higher_minor
    ),
    "grown_envelope": single(
        "fields of a later PEFT beside `reft`", PREFILL, r=2, layers_to_transform=[0], change=grown_envelope
    ),
    "dropout": single("dropout is of training alone", PREFILL, r=2, layers_to_transform=[0], dropout=0.5),
    "bundle": bundle("a LoRA at the root and a ReFT", ("default",), {"edit": {"r": 2, "positions": "f2+l1"}}),
    "bundle_ranks": bundle(
        "a LoRA whose rank_pattern is what its tensors have, and whose list of modules is compared, not run",
        ("default",),
        {"edit": {"intervention": "bias"}, "second": {"r": 2}},
        r=1,
        rank_pattern={"q_proj": 2},
        target_modules=["q_proj", "(a+)+$"],
    ),
    "bundle_of_four": bundle(
        "two LoRAs and two ReFTs",
        ("default", "other"),
        {"tone": {"intervention": "bias", "positions": "all"}, "edit-2": {"r": 1, "layers_to_transform": [1]}},
    ),
}
