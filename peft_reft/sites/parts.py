"""The parts of a block that add to the residual stream: which modules they are, told by structure and by role.

What a part adds is, in this order: the output of the norm behind it (Gemma 2, OLMo 2, GLM-4), else of the part's own
module, else, where that module adds the residual itself (BLOOM, MPT, BERT), of the last linear map in it. A norm of
such a name may also stand in the stream, behind the sum (GTE, NomicBERT): `behind=False` is the answer then, and a
probe says which.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from .fields import config_field

__all__ = [
    "attention_output",
    "attentions",
    "head_count",
    "linear_maps",
    "mlp_output",
    "multiplier",
    "other_outputs",
    "outermost",
    "output_projection",
    "stream_multiplier",
]

_ATTENTION = re.compile(r"Attention|Attn")
_CROSS = re.compile(r"Cross|EncDec")
_CROSS_NAMES = re.compile(r"cross|encoder_attn|enc_dec|encdec", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"MLP|Mlp|FeedForward|FFN|Moe|MoE|MOE|Mixture|Experts|Dense(Gated)?Act")
_MIXER = re.compile(r"Mixer|Mamba|SSM|ShortConv|DeltaNet|Recurrent|Retention|TimeMix|SelfAttentionConv")
_NO_PART = re.compile(r"Norm|Router|Gate$|Activation|Embedding|Dropout")
_OUTPUT = re.compile(r"(c_|o_|out_|attn_)?proj|o|out|out_lin|w_?o|dense|linear_out|attention_out", re.I)
_INPUTS = re.compile(r"(^|[._])(q|k|v|qkv|query|key|value|query_key_value|gate|in_proj|c_attn|kv)([._]|$|_)", re.I)
_AFTER_MLP = re.compile(r"post_?(feedforward|feed_forward|mlp|ffn|ff|moe)_?(layer_?)?norm|post_?norm_?2")
_AFTER_ATTENTION = (
    re.compile(r"post_?(self_?attn|self_?attention|attn|operator)_?(layer_?)?norm|post_?norm_?1"),
    re.compile(r"post_?attention_?(layer_?)?norm"),
)
_AFTER_CROSS = (re.compile(r"post_?cross_?(attn|attention)_?(layer_?)?norm"),)
_RESIDUAL = ("residual", "input_tensor")
_MULTIPLIERS = ("residual_multiplier", "residual_scale")
_OWN_MULTIPLIERS = {"attention_output": "attn_beta_factor", "mlp_output": "mlp_beta_factor"}
_STREAM_MULTIPLIERS = {"attention_output": "attn_alpha_factor", "mlp_output": "mlp_alpha_factor"}
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_ADAPTERS = "reft"  # our own child of a site


def attention_output(block: nn.Module, *, behind: bool = True) -> str | None:
    """Path of the module whose output is what the block's attention adds, before any multiplier; None without one.

    Args:
        block: the block.
        behind: whether a norm behind the attention belongs to it.
    """
    projection = output_projection(block)
    if projection is None:
        return None
    after = _norm_behind(block, _AFTER_ATTENTION) if behind and _norm_behind(block, (_AFTER_MLP,)) else None
    return after or _added(block, projection)


def other_outputs(block: nn.Module) -> list[str]:
    """The same of what else a block adds: a decoder's attention to its encoder, state spaces, convolutions."""
    found = attentions(block)
    projections = [_projection_in(block, path) for path in found if path not in _own(block, found)]
    behind = _norm_behind(block, _AFTER_CROSS)
    added = [behind or _added(block, path) for path in projections if path is not None]
    several = [path for path, _ in _feed_forwards(block)]
    return [*added, *_mixers(block), *(several if len(several) > 1 else ())]


def mlp_output(block: nn.Module, *, behind: bool = True) -> str | None:
    """Path of the module whose output is what the feed-forward part adds, before any multiplier.

    None where the block has none, or several of them whose sum no module gives.

    Args:
        block: the block.
        behind: whether a norm behind the part belongs to it.
    """
    after = _norm_behind(block, (_AFTER_MLP,)) if behind else None
    if after is not None:
        return after
    elsewhere = [*attentions(block), *_mixers(block)]
    parts = _feed_forwards(block)
    if len(parts) > 1 or not elsewhere:
        return None
    if parts:
        path, module = parts[0]
        if not _adds_residual(module):
            return path
        linear = linear_maps(module)
        return f"{path}.{linear[-1]}" if linear else None
    linear = [path for path in linear_maps(block) if not any(_within(path, other) for other in elsewhere)]
    return linear[-1] if linear else None


def output_projection(block: nn.Module) -> str | None:
    """Path of the linear map that takes the concatenated heads of the block's own attention back to hidden size."""
    own = _own(block, attentions(block))
    return _projection_in(block, own[0]) if len(own) == 1 else None


def attentions(block: nn.Module) -> list[str]:
    """Paths of the outermost attention modules of a block."""
    return [path for path, _ in _outermost(block, _ATTENTION)]


def _mixers(block: nn.Module) -> list[str]:
    """Paths of what mixes tokens by other means than attention."""
    inside = attentions(block)
    found = [path for path, _ in _outermost(block, _MIXER)]
    return [path for path in found if not any(_within(path, other) or _within(other, path) for other in inside)]


def multiplier(block: nn.Module, component: str) -> float:
    """By how much a block multiplies what a part adds, where it keeps that as a number (Granite, MiniCPM 3, MiniMax).

    Args:
        block: the block.
        component: `"attention_output"` or `"mlp_output"`.
    """
    names = (*_MULTIPLIERS, *(name for part, name in _OWN_MULTIPLIERS.items() if part == component))
    return _number(block, names)


def stream_multiplier(block: nn.Module, component: str) -> float:
    """By how much it multiplies the residual stream to which it adds that part (MiniMax)."""
    return _number(block, (name for part, name in _STREAM_MULTIPLIERS.items() if part == component))


def _number(block: nn.Module, names: Iterable[str]) -> float:
    found = (getattr(block, name, None) for name in names)
    return next((float(value) for value in found if isinstance(value, (int, float)) and value), 1.0)


def head_count(block: nn.Module, projection: str, config: object) -> int | None:
    """Number of heads: the attention's own, since layers may differ, else the config's."""
    parts = projection.split(".")[:-1]
    owners = [block.get_submodule(".".join(parts[:end])) for end in range(len(parts), 0, -1)]
    for owner in (*owners, *(child for module in owners[-1:] for child in module.children()), config):
        for name in _HEADS:
            if isinstance(value := config_field(owner, name), int):
                return value
    return None


def _own(block: nn.Module, found: list[str]) -> list[str]:
    """The attentions among the paths that are the block's own, not to another sequence."""
    cross = [
        path
        for path in found
        if _CROSS.search(type(block.get_submodule(path)).__name__) or _CROSS_NAMES.search(path.rpartition(".")[2])
    ]
    return [path for path in found if path not in cross] or (found if len(found) == 1 else [])


def _added(block: nn.Module, projection: str) -> str:
    parent = projection.rpartition(".")[0]
    module = block.get_submodule(parent)
    inside = parent and _ATTENTION.search(type(module).__name__) and not _adds_residual(module)
    return parent if inside else projection


def _norm_behind(block: nn.Module, patterns: tuple[re.Pattern[str], ...]) -> str | None:
    names = [name for name, _ in block.named_children()]
    return next((name for pattern in patterns for name in names if pattern.fullmatch(name)), None)


def _projection_in(block: nn.Module, path: str) -> str | None:
    linear = linear_maps(block.get_submodule(path))
    named = [name for name in linear if _OUTPUT.fullmatch(name.rpartition(".")[2])]
    others = [name for name in linear if not _INPUTS.search(name)]
    chosen = named or others or linear
    return f"{path}.{chosen[-1]}" if chosen else None


def _adds_residual(module: nn.Module) -> bool:
    return any(name in inspect.signature(module.forward).parameters for name in _RESIDUAL)


def _outermost(block: nn.Module, pattern: re.Pattern[str]) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules whose role, which is their class's name without the model's, fits a pattern."""
    model = type(block).__name__

    def fits(kind: str) -> bool:
        role = _without_common_start(kind, model)  # Qwen3MoeAttention is no mixture of experts
        return pattern.search(role) is not None and not _NO_PART.search(role)

    return outermost(block, fits)


def outermost(module: nn.Module, fits: Callable[[str], bool], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Path and module of the outermost modules inside whose class has a name that fits; never an adapter's own."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if fits(type(child).__name__):
            yield path, child
        elif name != _ADAPTERS:
            yield from outermost(child, fits, path)


def _without_common_start(name: str, other: str) -> str:
    """`name` from the first word on in which it differs from `other`; all of it where it does not."""
    length = next((n for n, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))
    while length and not (name[length : length + 1].isupper() and not name[length - 1].isupper()):
        length -= 1
    return name[length:]


def _feed_forwards(block: nn.Module) -> list[tuple[str, nn.Module]]:
    elsewhere = [*attentions(block), *_mixers(block)]
    return [
        (path, module)
        for path, module in _outermost(block, _FEED_FORWARD)
        if not any(_within(path, other) or _within(other, path) for other in elsewhere)
        and any(True for _ in module.parameters())
    ]


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")


def linear_maps(module: nn.Module, prefix: str = "") -> list[str]:
    """Paths of the linear maps, quantised, wrapped by an adapter or not: transformers' Conv1D has `nx` and `nf`."""
    found: list[str] = []
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if name == _ADAPTERS:
            continue  # it has `in_features`, and is no part of the block
        if hasattr(child, "in_features") or (hasattr(child, "nx") and hasattr(child, "nf")):
            found.append(path)
        else:
            found += linear_maps(child, path)
    return found
