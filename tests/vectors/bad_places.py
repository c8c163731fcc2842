"""Bundles, and adapters of another base."""

from __future__ import annotations

from typing import Any

from .adapters import HIDDEN, adapter
from .arithmetic import numbers
from .changes import (
    Bad,
    Make,
    base_model,
    before,
    filled,
    index,
    reft,
    with_files,
    without,
)
from .folder import CONFIG, INDEX, WEIGHTS, pack, safetensors_file
from .good import bundle_files, lora_files

__all__ = ["BUNDLES", "ON_BASE"]

TOKENS = "base_model.model.model.embed_tokens.token_adapter."


def bundle(name: str) -> dict[str, bytes]:
    edit = adapter(f"bad/{name}/edit", r=1, layers_to_transform=[0]).written()
    return bundle_files({("default", "lora"): lora_files(f"bad/{name}"), ("edit", "reft"): edit})


def lora(**values: Any) -> Make:
    def make(name: str) -> dict[str, bytes]:
        edit = adapter(f"bad/{name}/edit", r=1, layers_to_transform=[0]).written()
        return bundle_files({("default", "lora"): lora_files(f"bad/{name}", **values), ("edit", "reft"): edit})

    return make


def nan_lora(name: str) -> dict[str, bytes]:
    edit = adapter(f"bad/{name}/edit", r=1, layers_to_transform=[0]).written()
    at = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    held = {
        f"{at}A.weight": pack(filled(float("nan"))(numbers("A", 2, HIDDEN))),
        f"{at}B.weight": pack(numbers("B", HIDDEN, 2)),
    }
    own = {**lora_files(name), WEIGHTS: safetensors_file(held)}
    return bundle_files({("default", "lora"): own, ("edit", "reft"): edit})


def member(**values: Any) -> Make:
    return index(bundle, lambda content: content["members"][1].update(values))


def with_base(*, component: str, **values: Any) -> Make:
    return before(lambda m: m.manifest["base_model"].update(values), component=component)


BUNDLES: dict[str, Bad] = {
    "bundle_no_index": Bad("a bundle without its index", without(bundle, INDEX), "bundle.index", INDEX),
    "bundle_other_bytes": Bad(
        "a LoRA other than the index says",
        with_files(bundle, {CONFIG: lora_files("x", lora_alpha=9)[CONFIG]}),
        "bundle.files",
        INDEX,
    ),
    "bundle_file_gone": Bad("a member's weights are gone", without(bundle, f"reft/edit/{WEIGHTS}"), "manifest", INDEX),
    "bundle_regex": Bad("target_modules is a pattern", lora(target_modules="(a+)+$"), "bundle.pattern", CONFIG),
    "bundle_regex_key": Bad(
        "a key of rank_pattern is a pattern", lora(rank_pattern={"(a+)+$": 2}), "bundle.pattern", CONFIG
    ),
    "bundle_rank": Bad("a LoRA of rank 65,536, its tensors of rank 2", lora(r=65_536), "tensors.unfit", WEIGHTS),
    "bundle_rank_pattern": Bad(
        "a rank_pattern of 9, the tensors of rank 2", lora(rank_pattern={"q_proj": 9}), "tensors.unfit", WEIGHTS
    ),
    "bundle_nan": Bad("NaN in a LoRA", nan_lora, "tensors.finite", WEIGHTS),
    "bundle_self": Bad("a key `self` in the LoRA's config", lora(self=1), "bundle.member", CONFIG, "base"),
    "bundle_bias": Bad("a LoRA's bias = some", lora(bias="some"), "bundle.member", CONFIG, "base"),
    "bundle_task": Bad("a LoRA of a task that PEFT lacks", lora(task_type="MAGIC"), "bundle.member", CONFIG, "base"),
    "bundle_nothing_targeted": Bad(
        "a LoRA of modules that the base lacks", lora(target_modules=["nowhere"]), "bundle.member", CONFIG, "base"
    ),
    "bundle_layer_replication": Bad(
        "a LoRA that repeats layers", lora(layer_replication=[[0, 2], [0, 2]]), "config.value", CONFIG
    ),
    "bundle_import": Bad(
        "a LoRA that imports a module", lora(megatron_config={"a": 1}, megatron_core="this"), "config.value", CONFIG
    ),
    "bundle_alpha": Bad("an alpha of 1e308", lora(lora_alpha=1e308), "config.value", CONFIG),
    "bundle_alpha_pattern": Bad(
        "an alpha that is a text", lora(alpha_pattern={"q_proj": "8"}), "config.value", CONFIG
    ),
    "bundle_other_tuner": Bad("a tuner that PEFT lacks", lora(peft_type="MYSTERY"), "manifest", INDEX, "base"),
    "bundle_name_path": Bad("a member named ../x", member(name="../x"), "name", INDEX),
    "bundle_name_reserved": Bad("a member named reft", member(name="reft"), "name", INDEX),
    "bundle_folder": Bad("a member in another folder than its name says", member(folder="/tmp"), "manifest", INDEX),
    "bundle_kind": Bad("a ReFT listed as a LoRA", member(kind="lora", folder="edit"), "manifest", INDEX),
    "bundle_twice": Bad(
        "a member listed twice", index(bundle, lambda c: c["members"].append(c["members"][1])), "manifest", INDEX
    ),
    "bundle_unknown_field": Bad(
        "an unknown field of the index", index(bundle, lambda c: c.update(x=1)), "manifest", INDEX
    ),
    "bundle_version": Bad(
        "an index of another major version",
        index(bundle, lambda c: c.update(spec_version="2.0")),
        "config.version",
        INDEX,
    ),
    "bundle_key_twice": Bad(
        "`members` stands twice",
        lambda name: {**bundle(name), INDEX: bundle(name)[INDEX].replace(b"{", b'{"members": [],', 1)},
        "json.duplicate",
        INDEX,
    ),
}

ON_BASE: dict[str, Bad] = {
    "base_architecture": Bad(
        "made for another class", base_model(architecture="MistralForCausalLM"), "base.architecture", None, "base"
    ),
    "base_model_type": Bad(
        "made for another type of model", base_model(model_type="mistral"), "base.model_type", None, "base"
    ),
    "base_layers": Bad(
        "made for a base of three blocks", base_model(stacks={"model.layers": 3}), "base.layers", None, "base"
    ),
    "base_config": Bad(
        "made for other numbers of heads", base_model(config="sha256:" + "0" * 64), "base.config", None, "base"
    ),
    "base_hidden_size": Bad(
        "made for another hidden size, which a head's tensors do not show",
        with_base(component="head_output[1]", hidden_size=16),
        "base.hidden_size",
        None,
        "base",
    ),
    "base_stack_more": Bad(
        "made for a base with a second stack",
        base_model(stacks={"model.layers": 2, "model.more": 1}),
        "base.layers",
        None,
        "base",
    ),
    "order_identity_before_sites": Bad(
        "another base, and a layer that this one lacks",
        before(
            lambda m: (
                m.manifest["base_model"].update(model_type="mistral"),
                m.config["reft"].update(layers_to_transform=[9]),
            )
        ),
        "base.model_type",
        None,
        "base",
    ),
    "tokens_beyond": Bad(
        "a trained token that the vocabulary lacks",
        before(
            lambda m: None,
            envelope={"trainable_token_indices": [99]},
            beside={f"{TOKENS}trainable_tokens_delta": pack(numbers("tokens", 1, HIDDEN))},
        ),
        "config.value",
        None,
        "base",
    ),
    "tokens_nowhere": Bad(
        "trained tokens of a module that the base lacks",
        before(
            lambda m: None,
            envelope={"trainable_token_indices": {"nowhere": [1]}},
            beside={f"{TOKENS}trainable_tokens_delta": pack(numbers("tokens", 1, HIDDEN))},
        ),
        "config.value",
        None,
        "base",
    ),
    "tokens_fewer_rows": Bad(
        "two trained tokens, and one row",
        before(
            lambda m: None,
            envelope={"trainable_token_indices": [1, 2]},
            beside={f"{TOKENS}trainable_tokens_delta": pack(numbers("tokens", 1, HIDDEN))},
        ),
        "load.fit",
        None,
        "base",
    ),
    "layer_beyond": Bad("layer 9 of two", reft(layers_to_transform=[9]), "site.layer", None, "base"),
    "layer_twice": Bad(
        "a layer twice, once from the end", reft(layers_to_transform=[0, -2]), "site.layer", None, "base"
    ),
    "stack_part_of_a_name": Bad(
        "the end of a name, but no whole part", reft(layers_pattern="ayers"), "site.stack", None, "base"
    ),
    "stack_none_of_two": Bad(
        "two stacks that the model lacks", reft(layers_pattern=["h", "blocks"]), "site.stack", None, "base"
    ),
    "stack_nowhere": Bad("a stack that the model lacks", reft(layers_pattern="nowhere"), "site.stack", None, "base"),
    "head_beyond": Bad(
        "head 9 of two",
        before(lambda m: m.config["reft"].update(component="head_output[9]"), component="head_output[1]", r=2),
        "site.component",
        None,
        "base",
    ),
}
