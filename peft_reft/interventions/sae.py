"""An edit in the space of a sparse autoencoder that the user brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

from .base import Intervention
from .registry import register_intervention

__all__ = ["SaeEdit", "sae_delta", "sae_features"]


def sae_features(hidden: Tensor, encoder: Tensor, encoder_bias: Tensor, threshold: Tensor) -> Tensor:
    """f = z · [z > max(θ, 0)], z = Eh + e: ReLU where θ = 0, JumpReLU elsewhere.

    hidden `[..., hidden]`, encoder E `[rank, hidden]`, encoder_bias e and threshold θ `[rank]`; returns `[..., rank]`.
    """
    raw = hidden @ encoder.mT + encoder_bias
    return raw * (raw > threshold.clamp(min=0))


def sae_delta(features: Tensor, decoder: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Dᵀ(s ⊙ f + v − f): what decoding the edited features adds; what the autoencoder cannot express stays in h.

    features f `[..., rank]`, decoder D `[rank, hidden]`, scale s and shift v `[rank]`; returns `[..., hidden]`.
    """
    return (features * (scale - 1) + shift) @ decoder


@register_intervention("sae", version=1)
class SaeEdit(Intervention):
    """h′ = h + Dᵀ(f′ − f), f′ = s ⊙ f + v on r chosen features (arXiv 2406.04093; JumpReLU: 2407.14435).

    Encode, change the chosen features, decode, and keep the reconstruction error h − dec(f): since features that are
    not chosen cancel, only the chosen ones' rows are stored. s scales a feature; s = 0 sets it to v. r is the number
    of features. Bring the autoencoder with `bring`; it is saved with the adapter and never trained. Parameters:
    `scale` s, `shift` v; brought: `encoder`, `encoder_bias`, `threshold`, `decoder`.
    """

    encoder: Tensor
    encoder_bias: Tensor
    threshold: Tensor
    decoder: Tensor
    tensors = {
        "scale": ("rank",),
        "shift": ("rank",),
        "encoder": ("rank", "hidden"),
        "encoder_bias": ("rank",),
        "threshold": ("rank",),
        "decoder": ("rank", "hidden"),
    }
    frozen = frozenset({"encoder", "encoder_bias", "threshold", "decoder"})

    def identity(self) -> None:
        """s = 1, v = 0; no autoencoder yet: its rows are zero."""
        for name, tensor in self.named_tensors().items():
            torch.nn.init.constant_(tensor, 1.0 if name == "scale" else 0.0)

    def paper_start(self) -> None:
        """There is no published start but the identity."""
        self.identity()

    @torch.no_grad()
    def bring(
        self,
        features: Sequence[int],
        *,
        encoder: Tensor,
        decoder: Tensor,
        encoder_bias: Tensor | None = None,
        decoder_bias: Tensor | None = None,
        threshold: Tensor | None = None,
    ) -> None:
        """Take the chosen features' rows from a sparse autoencoder f = act(E(h − d) + e), ĥ = Dᵀf + d.

        Args:
            features: their r indices.
            encoder: E `[features, hidden]`.
            decoder: D `[features, hidden]`.
            encoder_bias: e `[features]`.
            decoder_bias: d `[hidden]`, if the autoencoder subtracts it before encoding.
            threshold: θ `[features]` of a JumpReLU; None for a ReLU. A top-k autoencoder has no such form: its
                features depend on each other.

        Raises:
            ConfigError: tensors of another shape, or another number of features than r.
        """
        width = encoder.shape[0]
        shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "encoder": (encoder, (width, self.hidden_size)),
            "decoder": (decoder, (width, self.hidden_size)),
        }
        for name, tensor in (("encoder_bias", encoder_bias), ("threshold", threshold)):
            if tensor is not None:
                shapes[name] = (tensor, (width,))
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise ConfigError(f"{name} has shape {list(tensor.shape)}", value=name, rule=f"it is {list(shape)}")
        chosen = list(features)
        if len(set(chosen)) != self.rank or not all(0 <= index < width for index in chosen):
            raise ConfigError(
                f"features={chosen!r}", value=chosen, rule=f"they are r={self.rank} different indices below {width}"
            )
        bias = torch.zeros(width) if encoder_bias is None else encoder_bias
        if decoder_bias is not None:
            bias = bias - encoder @ decoder_bias
        self.encoder.copy_(encoder[chosen])
        self.decoder.copy_(decoder[chosen])
        self.encoder_bias.copy_(bias[chosen])
        self.threshold.copy_(torch.zeros(self.rank) if threshold is None else threshold[chosen])

    def edit_delta(self, hidden: Tensor) -> Tensor:
        """See `sae_features` and `sae_delta`."""
        features = sae_features(hidden, *(self.parameter(n, hidden) for n in ("encoder", "encoder_bias", "threshold")))
        return sae_delta(features, *(self.parameter(name, hidden) for name in ("decoder", "scale", "shift")))
