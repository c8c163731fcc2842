"""Tensors, manifests and versions that do not belong together."""

from __future__ import annotations

import json
from typing import Any

from .adapters import HIDDEN, adapter
from .arithmetic import numbers
from .changes import (
    SITE,
    Bad,
    Make,
    after,
    base_model,
    before,
    envelope,
    filled,
    index,
    manifest,
    more_tensors,
    raw,
    reft,
    renamed,
    resealed,
    tensor,
    with_files,
    without,
)
from .folder import CONFIG, MANIFEST, WEIGHTS, Adapter, dump, pack
from .good import bundle_files, lora_files

__all__ = ["MANIFESTS", "TENSORS", "VERSIONS"]

PICKLE = "adapter_model.bin"


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def of_another(name: str) -> Make:
    """One file of another adapter, whose manifest describes it too: a torn pair."""

    def apply(files: dict[str, bytes]) -> None:
        files[name] = adapter("another", r=2, layers_to_transform=[0], positions="f2+l2", dropout=0.5).written()[name]
        content = json.loads(files[MANIFEST])
        files[MANIFEST] = dump(content)
        resealed(files)

    return after(apply)


def bundle(name: str) -> dict[str, bytes]:
    edit = adapter(f"bad/{name}/edit", r=1, layers_to_transform=[0]).written()
    return bundle_files({("default", "lora"): lora_files(f"bad/{name}"), ("edit", "reft"): edit})


def lora(**values: Any) -> Make:
    def make(name: str) -> dict[str, bytes]:
        edit = adapter(f"bad/{name}/edit", r=1, layers_to_transform=[0]).written()
        return bundle_files({("default", "lora"): lora_files(f"bad/{name}", **values), ("edit", "reft"): edit})

    return make


def member(**values: Any) -> Make:
    return index(bundle, lambda content: content["members"][1].update(values))


def both_versions(version: str, **values: Any) -> Make:
    def change(made: Adapter) -> None:
        made.config["reft"]["spec_version"] = made.manifest["spec_version"] = version
        made.manifest.update(values)

    return before(change)


TENSORS: dict[str, Bad] = {
    "tensor_missing": Bad(
        "a bias is missing", before(lambda m: m.tensors.pop(f"{SITE}bias")), "tensors.unfit", WEIGHTS
    ),
    "tensor_shape": Bad("a bias of another size", tensor("bias", lambda v: v[:1]), "tensors.unfit", WEIGHTS),
    "tensor_transposed": Bad("[hidden, r]", tensor("weight", lambda v: v.T), "tensors.unfit", WEIGHTS),
    "tensor_integers": Bad("a parameter of integers", tensor("bias", filled(1.0), "I32"), "tensors.unfit", WEIGHTS),
    "tensor_other_rank": Bad("the config says r = 3", reft(r=3), "tensors.unfit", WEIGHTS),
    "tensor_other_kind": Bad(
        "the tensors are of another kind", reft(intervention="direft", kinds={"direft": 1}), "tensors.unfit", WEIGHTS
    ),
    "tensor_unit_more": Bad(
        "a unit that no term has", more_tensors(SITE.replace("reft_0", "reft_1") + "bias", 2), "tensors.unfit", WEIGHTS
    ),
    "tensor_unit_untied": Bad(
        "two terms, not shared, and one unit", reft(share_weights=False), "tensors.unfit", WEIGHTS
    ),
    "tensor_unit_leading_zero": Bad("unit 00", renamed("reft_0", "reft_00"), "tensors.unfit", WEIGHTS),
    "tensor_name_more": Bad("a tensor that the kind lacks", more_tensors(SITE + "scale", 2), "tensors.unfit", WEIGHTS),
    "tensor_none": Bad(
        "a weights file without a tensor",
        before(lambda m: setattr(m, "tensors", {"base_model.model.lm_head.weight": pack(numbers("x", 16, HIDDEN))})),
        "tensors.unfit",
        WEIGHTS,
    ),
    "tensor_rank_beyond_head": Bad(
        "r = 5 in a head of four columns",
        before(lambda m: None, component="head_output[1]", r=5),
        "tensors.unfit",
        WEIGHTS,
    ),
    "tensor_site_escape": Bad(
        "a site with control characters", renamed(".layers.0.", ".layers.0\x1b[31m."), "tensors.unfit", WEIGHTS
    ),
    "tensor_site_empty_part": Bad("a site of empty parts", renamed(".layers.0.", "..0."), "tensors.unfit", WEIGHTS),
    "tensor_of_twin_group": Bad(
        "two equal groups, and the second lacks a term",
        before(
            lambda m: [m.tensors.pop(name) for name in [*m.tensors] if "reft_3" in name],
            interventions=[{"share_weights": False}, {"share_weights": False}],
        ),
        "tensors.unfit",
        WEIGHTS,
    ),
    "tensor_extra": Bad(
        "a weight of the base beside the edits",
        more_tensors("base_model.model.model.norm.weight", 8),
        "tensors.extra",
        WEIGHTS,
    ),
    "tensor_extra_inside_a_name": Bad(
        "a module that holds the name of a saved one, and does not end with it",
        before(
            lambda m: (
                m.config.update(modules_to_save=["ml"]),
                m.tensors.update(
                    {"base_model.model.model.layers.1.mlp.up_proj.weight": pack(numbers("x", 8, HIDDEN))}
                ),
            )
        ),
        "tensors.extra",
        WEIGHTS,
    ),
    "tensor_extra_unprefixed": Bad(
        "a tensor outside of base_model.model", more_tensors("lm_head.weight", 16, 8), "tensors.extra", WEIGHTS
    ),
    "tensor_lora_beside": Bad(
        "a LoRA among the edits",
        more_tensors("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", 2, 8),
        "tensors.extra",
        WEIGHTS,
    ),
    "tensor_missing_module": Bad(
        "modules_to_save without its tensors", envelope(modules_to_save=["lm_head"]), "tensors.missing", WEIGHTS
    ),
    "tensor_missing_tokens": Bad(
        "trained tokens without their rows", envelope(trainable_token_indices=[4]), "tensors.missing", WEIGHTS
    ),
    "order_finite_before_places": Bad(
        "NaN, and a tensor that nothing brings",
        before(
            lambda m: m.tensors.update(
                {"base_model.model.model.norm.weight": pack(filled(float("nan"))(numbers("x", HIDDEN)))}
            )
        ),
        "tensors.finite",
        WEIGHTS,
    ),
    "order_edits_before_beside": Bad(
        "a bias is missing, and a tensor that nothing brings",
        before(
            lambda m: (
                m.tensors.pop(f"{SITE}bias"),
                m.tensors.update({"base_model.model.model.norm.weight": pack(numbers("x", HIDDEN))}),
            )
        ),
        "tensors.unfit",
        WEIGHTS,
    ),
    "order_values_before_tensors": Bad(
        "a value that is none, and a bias is missing",
        before(lambda m: (m.tensors.pop(f"{SITE}bias"), m.config["reft"].update(turns="last"))),
        "config.value",
        CONFIG,
    ),
    "site_nowhere": Bad(
        "a site that no model of this kind has", renamed(".layers.0.", ".blocks.0."), "load.fit", None, "base"
    ),
    "site_fewer": Bad(
        "the config edits two blocks, the file holds one", reft(layers_to_transform=None), "load.fit", None, "base"
    ),
    "site_other_block": Bad(
        "the config edits block 1, the file holds block 0", reft(layers_to_transform=[1]), "load.fit", None, "base"
    ),
    "site_other_component": Bad(
        "the config edits the feed-forward part", reft(component="mlp_output"), "load.fit", None, "base"
    ),
}

MANIFESTS: dict[str, Bad] = {
    "manifest_missing": Bad("weights without a manifest", without(reft(), MANIFEST), "manifest.missing", MANIFEST),
    "manifest_without_weights": Bad(
        "a manifest of weights that are gone", without(reft(), WEIGHTS), "manifest", MANIFEST
    ),
    "manifest_unknown_field": Bad("an unknown field", manifest(lambda c: c.update(x=1)), "manifest", MANIFEST),
    "manifest_missing_field": Bad("a field is missing", manifest(lambda c: c.pop("producer")), "manifest", MANIFEST),
    "manifest_path_up": Bad(
        "a path that leaves the folder",
        manifest(lambda c: c["files"][1].update(path="../adapter_model.safetensors")),
        "manifest",
        MANIFEST,
    ),
    "manifest_path_absolute": Bad(
        "an absolute path", manifest(lambda c: c["files"][1].update(path="/etc/passwd")), "manifest", MANIFEST
    ),
    "manifest_path_backslash": Bad(
        "a path of another system",
        manifest(lambda c: c["files"][1].update(path="..\\adapter_model.safetensors")),
        "manifest",
        MANIFEST,
    ),
    "manifest_path_drive": Bad(
        "a drive", manifest(lambda c: c["files"][1].update(path="C:adapter_model.safetensors")), "manifest", MANIFEST
    ),
    "manifest_path_case": Bad(
        "another spelling of a name",
        manifest(lambda c: c["files"][1].update(path="Adapter_Model.safetensors")),
        "manifest",
        MANIFEST,
    ),
    "manifest_file_twice": Bad(
        "a file listed twice", manifest(lambda c: c["files"].append(c["files"][0])), "manifest", MANIFEST
    ),
    "manifest_file_more": Bad(
        "a file that is not of the format",
        manifest(lambda c: c["files"].append({"path": "x", "size": 0, "sha256": "0" * 64})),
        "manifest",
        MANIFEST,
    ),
    "manifest_config_unlisted": Bad(
        "the config is not listed", manifest(lambda c: c["files"].pop(0)), "manifest", MANIFEST
    ),
    "manifest_digest_capitals": Bad(
        "a digest in capitals", manifest(lambda c: c["files"][0].update(sha256="A" * 64)), "manifest", MANIFEST
    ),
    "manifest_size_text": Bad(
        "a size that is a text", manifest(lambda c: c["files"][0].update(size="10")), "manifest", MANIFEST
    ),
    "manifest_two_members": Bad(
        "two members", manifest(lambda c: c["members"].append(c["members"][0])), "manifest", MANIFEST
    ),
    "manifest_member_kind": Bad(
        "a member of another kind", manifest(lambda c: c["members"][0].update(kind="lora")), "manifest", MANIFEST
    ),
    "manifest_hidden_size": Bad("a hidden size of 0", base_model(hidden_size=0), "manifest", MANIFEST),
    "order_version_before_manifest": Bad(
        "another major version, and an unknown field",
        manifest(lambda c: c.update(spec_version="2.0", x=1)),
        "config.version",
        MANIFEST,
    ),
    "order_fields_before_features": Bad(
        "an unknown field, and a required feature",
        manifest(lambda c: c.update(required_features=["tiles"], x=1)),
        "manifest",
        MANIFEST,
    ),
    "order_features_before_files": Bad(
        "a required feature, and a digest in capitals",
        manifest(lambda c: (c.update(required_features=["tiles"]), c["files"][0].update(sha256="A" * 64))),
        "manifest.feature",
        MANIFEST,
    ),
    "manifest_base_unknown": Bad("an unknown item of the base", base_model(tower=1), "manifest", MANIFEST),
    "manifest_hidden_size_null": Bad("a hidden size of null", base_model(hidden_size=None), "manifest", MANIFEST),
    "manifest_architecture_list": Bad(
        "an architecture that is a list", base_model(architecture=["LlamaForCausalLM"]), "manifest", MANIFEST
    ),
    "manifest_stacks_texts": Bad(
        "a stack's length that is a text", base_model(stacks={"model.layers": "2"}), "manifest", MANIFEST
    ),
    "manifest_path_list": Bad(
        "a path that is a list, in files and members",
        manifest(lambda c: (c["files"][1].update(path=[]), c["members"][0].update(weights=[]))),
        "manifest",
        MANIFEST,
    ),
    "manifest_path_up_twice": Bad(
        "a path that leaves the folder, in files and members",
        manifest(lambda c: (c["files"][1].update(path="../x"), c["members"][0].update(weights="../x"))),
        "manifest",
        MANIFEST,
    ),
    "manifest_feature": Bad(
        "a feature that is required and unknown",
        manifest(lambda c: c.update(required_features=["tiles"])),
        "manifest.feature",
        MANIFEST,
    ),
    "manifest_feature_no_list": Bad(
        "features that are no list", manifest(lambda c: c.update(required_features={})), "manifest.feature", MANIFEST
    ),
    "manifest_tensors_differ": Bad(
        "the config lists other tensors",
        before(lambda m: m.config["reft"].update(tensors={})),
        "manifest.config",
        MANIFEST,
    ),
    "manifest_of_another_config": Bad("a config of another save", of_another(CONFIG), "manifest.config", MANIFEST),
    "integrity_weights": Bad(
        "a flipped bit of the weights", raw(WEIGHTS, flipped, seal=False), "integrity.file", WEIGHTS
    ),
    "integrity_config": Bad(
        "the config was edited by hand",
        raw(CONFIG, lambda d: d.replace(b"f2+l2", b"f2+l9"), seal=False),
        "integrity.file",
        CONFIG,
    ),
    "integrity_size": Bad(
        "a blank after the config", raw(CONFIG, lambda d: d + b" ", seal=False), "integrity.file", CONFIG
    ),
    "integrity_other_weights": Bad("weights of another save", of_another(WEIGHTS), "integrity.tensors", WEIGHTS),
    "integrity_tensor_unlisted": Bad(
        "the manifest lists a tensor less",
        manifest(lambda c: c["tensors"].pop(f"{SITE}bias")),
        "integrity.tensors",
        WEIGHTS,
    ),
    "pickle_beside": Bad(
        "a pickle beside the weights",
        with_files(reft(), {PICKLE: b"cos\nsystem\n(S'true'\ntR."}),
        "weights.pickle",
        PICKLE,
    ),
    "pickle_instead": Bad(
        "a pickle in place of the weights",
        without(with_files(reft(), {PICKLE: b"cos\nsystem\n(S'true'\ntR."}), WEIGHTS),
        "weights.pickle",
        PICKLE,
    ),
}

VERSIONS: dict[str, Bad] = {
    "version_major": Bad("another major version", both_versions("2.0"), "config.version", MANIFEST),
    "version_minor_feature": Bad(
        "a higher minor version that requires something",
        both_versions("1.7", required_features=["tiles"]),
        "manifest.feature",
        MANIFEST,
    ),
    "version_minor_field": Bad(
        "a higher minor version with a new field",
        before(lambda m: (m.config["reft"].update(spec_version="1.7", tile=3), m.manifest.update(spec_version="1.7"))),
        "config.unknown",
        CONFIG,
    ),
    "version_config_only": Bad(
        "the config says 1.7, the manifest 1.0", reft(spec_version="1.7"), "config.version", CONFIG
    ),
    "version_manifest_only": Bad(
        "the manifest says 1.7, the config 1.0",
        manifest(lambda c: c.update(spec_version="1.7")),
        "config.version",
        CONFIG,
    ),
    "version_spelling": Bad("1.00", both_versions("1.00"), "config.version", MANIFEST),
    "version_number": Bad(
        "the number 1.0", manifest(lambda c: c.update(spec_version=1.0)), "config.version", MANIFEST
    ),
    "version_lower": Bad("a version from which nothing leads on", both_versions("0.9"), "migration.missing", MANIFEST),
}
