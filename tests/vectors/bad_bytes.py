"""Files that break the rules of JSON, of safetensors, or of their values."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np

from .adapters import HIDDEN
from .arithmetic import nearly_equal, numbers
from .changes import (
    Bad,
    before,
    envelope,
    filled,
    header,
    raw,
    tensor,
    text,
)
from .folder import CONFIG, MANIFEST, WEIGHTS, pack

__all__ = ["HEADER", "JSON", "VALUES"]


def length_of(number: int) -> Callable[[bytes], bytes]:
    return lambda data: struct.pack("<Q", number) + data[8:]


JSON: dict[str, Bad] = {
    "json_truncated": Bad("a manifest that ends early", raw(MANIFEST, lambda d: d[:-9]), "json.syntax", MANIFEST),
    "json_no_utf8": Bad(
        "bytes that are no UTF-8", raw(CONFIG, lambda d: d.replace(b"tiny", b"t\xffny")), "json.syntax", CONFIG
    ),
    "json_byte_order_mark": Bad(
        "a byte order mark", raw(CONFIG, lambda d: b"\xef\xbb\xbf" + d), "json.syntax", CONFIG
    ),
    "json_utf16": Bad("UTF-16", raw(MANIFEST, lambda d: d.decode().encode("utf-16")), "json.syntax", MANIFEST),
    "json_trailing_comma": Bad(
        "a comma after the last item", text(CONFIG, '"f2+l2"', '"f2+l2",'), "json.syntax", CONFIG
    ),
    "json_comment": Bad("a comment", text(CONFIG, "{", "{ // positions"), "json.syntax", CONFIG),
    "json_control_character": Bad(
        "a raw line feed in a text", text(CONFIG, "tiny-base", "tiny\nbase"), "json.syntax", CONFIG
    ),
    "json_half_surrogate": Bad("half a surrogate pair", text(CONFIG, "tiny-base", "\\ud800"), "json.syntax", CONFIG),
    "json_two_objects": Bad(
        "a second object behind the first", raw(MANIFEST, lambda d: d + b"{}"), "json.syntax", MANIFEST
    ),
    "json_many_digits": Bad(
        "a number of 5,000 digits", text(CONFIG, '"r": 2', '"r": ' + "9" * 5000), "json.syntax", CONFIG
    ),
    "json_key_twice": Bad(
        "`reft` stands twice", text(CONFIG, '"reft": {', '"reft": {}, "reft": {'), "json.duplicate", CONFIG
    ),
    "json_field_twice": Bad(
        "a field of `reft` stands twice", text(CONFIG, '"turns"', '"turns": "each", "turns"'), "json.duplicate", CONFIG
    ),
    "json_field_twice_escaped": Bad(
        "twice, once escaped", text(CONFIG, '"turns"', '"t\\u0075rns": "each", "turns"'), "json.duplicate", CONFIG
    ),
    "json_manifest_key_twice": Bad(
        "`files` stands twice", text(MANIFEST, '"files"', '"files": [], "files"'), "json.duplicate", MANIFEST
    ),
    "json_nan": Bad("NaN", text(CONFIG, '"dropout": 0.0', '"dropout": NaN'), "json.number", CONFIG),
    "json_infinity": Bad("-Infinity", text(CONFIG, '"dropout": 0.0', '"dropout": -Infinity'), "json.number", CONFIG),
    "json_1e999": Bad(
        "a number that overflows", text(CONFIG, '"dropout": 0.0', '"dropout": 1e999'), "json.number", CONFIG
    ),
    "json_minus_zero": Bad("-0 as an integer", text(CONFIG, '"dropout": 0.0', '"dropout": -0'), "json.number", CONFIG),
    "json_nested": Bad("nested 40 deep", envelope(x=json.loads("[" * 40 + "]" * 40)), "json.depth", CONFIG),
    "json_nested_33": Bad(
        "nested 33 deep, the outermost counted", envelope(x=json.loads("[" * 32 + "]" * 32)), "json.depth", CONFIG
    ),
    "json_list": Bad("a list where an object belongs", raw(MANIFEST, lambda d: b"[]"), "json.object", MANIFEST),
}

HEADER: dict[str, Bad] = {
    "header_length_beyond": Bad("a header longer than the file", raw(WEIGHTS, length_of(2**19)), "tensors", WEIGHTS),
    "header_length_huge": Bad("a header of 2⁶⁴−1 bytes", raw(WEIGHTS, length_of(2**64 - 1)), "tensors", WEIGHTS),
    "header_seven_bytes": Bad("seven bytes", raw(WEIGHTS, lambda d: d[:7]), "tensors", WEIGHTS),
    "header_empty_file": Bad("no byte at all", raw(WEIGHTS, lambda d: b""), "tensors", WEIGHTS),
    "header_blank_first": Bad("a blank before the header's {", header("{", " {"), "tensors", WEIGHTS),
    "header_key_twice": Bad(
        "a tensor's field stands twice", header('"dtype"', '"dtype":"F16","dtype"'), "json.duplicate", WEIGHTS
    ),
    "header_field_more": Bad(
        "a field of a later safetensors", header('"dtype"', '"scale":1,"dtype"'), "tensors", WEIGHTS
    ),
    "header_unknown_dtype": Bad("a dtype that is not of the format", header('"F32"', '"F8_E4M3"'), "tensors", WEIGHTS),
    "header_float_size": Bad("a size of 2.0", header('"shape":[2', '"shape":[2.0'), "tensors", WEIGHTS),
    "header_negative_size": Bad("a size of −2", header('"shape":[2', '"shape":[-2'), "tensors", WEIGHTS),
    "header_huge_size": Bad("a size of 2⁴⁸−1", header('"shape":[2', '"shape":[281474976710655'), "tensors", WEIGHTS),
    "header_true_as_size": Bad("a size of true", header('"shape":[2', '"shape":[true'), "tensors", WEIGHTS),
    "header_overlap": Bad("two tensors share bytes", header("[8,72]", "[0,64]"), "tensors", WEIGHTS),
    "header_hole": Bad(
        "bytes between two tensors", header("[72,136]", "[76,140]", more=b"\0" * 4), "tensors", WEIGHTS
    ),
    "header_metadata_number": Bad("metadata that is no text", header('"pt"', "1"), "tensors", WEIGHTS),
    "header_nine_dimensions": Bad(
        "a shape of nine sizes", header('"shape":[2]', '"shape":[2,1,1,1,1,1,1,1,1]'), "tensors", WEIGHTS
    ),
    "data_longer": Bad("bytes after the data", raw(WEIGHTS, lambda d: d + b"\0" * 4), "tensors", WEIGHTS),
    "data_shorter": Bad("data that ends early", raw(WEIGHTS, lambda d: d[:-4]), "tensors", WEIGHTS),
}

VALUES: dict[str, Bad] = {
    "value_nan": Bad("NaN in a weight", tensor("weight", filled(float("nan"))), "tensors.finite", WEIGHTS),
    "value_infinity_bf16": Bad(
        "infinity in bfloat16", tensor("bias", filled(float("inf")), "BF16"), "tensors.finite", WEIGHTS
    ),
    "value_nan_f16": Bad("NaN in float16", tensor("bias", filled(float("nan")), "F16"), "tensors.finite", WEIGHTS),
    "value_beyond_float32": Bad("1e300 in float64", tensor("bias", filled(1e300), "F64"), "tensors.finite", WEIGHTS),
    "value_nan_beside": Bad(
        "NaN in a saved head",
        before(
            lambda m: (
                m.config.update(modules_to_save=["lm_head"]),
                m.tensors.update(
                    {"base_model.model.lm_head.weight": pack(filled(float("nan"))(numbers("x", 16, HIDDEN)))}
                ),
            )
        ),
        "tensors.finite",
        WEIGHTS,
    ),
    "rank_zero_matrix": Bad("a rotation of zeros", tensor("rotation", filled(0.0)), "load.rank", WEIGHTS, "base"),
    "rank_nearly_equal_rows": Bad(
        "a condition of two million", tensor("rotation", nearly_equal(2**-20)), "load.rank", WEIGHTS, "base"
    ),
    "rank_huge_values": Bad(
        "singular values of 10¹⁶", tensor("rotation", lambda v: v * 1e16), "load.rank", WEIGHTS, "base"
    ),
    "rank_tiny_values": Bad(
        "singular values of 10⁻¹⁷", tensor("rotation", lambda v: v * 1e-17), "load.rank", WEIGHTS, "base"
    ),
    "rank_equal_rows": Bad(
        "two equal rows", tensor("rotation", lambda v: np.stack([v[0], v[0]])), "load.rank", WEIGHTS, "base"
    ),
}
