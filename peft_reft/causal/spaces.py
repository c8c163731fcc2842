"""Spaces in which a hidden state is read and changed: a rotation's rows, principal components, an autoencoder.

Every change is written as h′ = h − (lift(f − f′) + 0): where the features do not change, f − f′ is zero and h keeps
its bits, −0 included (IEEE 754: x − (+0) is x, and (±0) + (+0) is +0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

__all__ = ["Autoencoder", "Pca", "Rotation", "Space"]

_ORTHONORMAL = 1e-4


class Space:
    """Features of a hidden state, and how a change of features changes it.

    A space of one's own defines `width`, `encode`, `lift`, and `offset` if it is to be used with `keep_rest=False`.

    Attributes:
        width: number of features.
        hidden: size of the vectors; None: it is not checked.
        keep_rest: whether what the features do not express stays in h; False replaces h by the decoded features, which
            is what pyvene does for principal components and autoencoders.
    """

    width: int
    hidden: int | None = None
    keep_rest: bool = True

    def encode(self, hidden: Tensor) -> Tensor:
        """Features of vectors.

        Args:
            hidden: `[..., hidden]`.

        Returns:
            `[..., width]`.
        """
        raise NotImplementedError

    def lift(self, change: Tensor) -> Tensor:
        """What a change of features changes in h; linear.

        Args:
            change: of the features, `[..., width]`.

        Returns:
            `[..., hidden]`.
        """
        raise NotImplementedError

    def offset(self, like: Tensor) -> Tensor:
        """What no features decode to; used with `keep_rest=False`.

        Args:
            like: any tensor of the device and dtype that are wanted.

        Returns:
            `[hidden]`.
        """
        raise NotImplementedError

    def difference(self, hidden: Tensor, source: Tensor) -> Tensor:
        """Features of h minus those of s, exactly zero where h is s.

        Args:
            hidden: h `[..., hidden]`.
            source: s, of the same shape.

        Returns:
            `[..., width]`.
        """
        same = (hidden == source).all(-1, keepdim=True)
        return torch.where(same, 0.0, self.encode(hidden) - self.encode(source))

    def write(self, hidden: Tensor, features: Tensor, change: Tensor) -> Tensor:
        """h with its features f replaced by f − change.

        Args:
            hidden: h `[..., hidden]`.
            features: f `[..., width]`.
            change: what is taken off them, `[..., width]`.

        Returns:
            h′ `[..., hidden]`.
        """
        if self.keep_rest:
            return hidden - (self.lift(change) + 0.0)
        return self.lift(features - change) + self.offset(hidden)


class Rotation(Space):
    """The coordinates Rh, R with orthonormal rows (distributed interchange, arXiv 2303.02536, definition 3).

    Args:
        matrix: R `[rank, hidden]`; a row is one coordinate.
        check: whether to look at the values of R; a learned one is orthonormal by construction.

    Raises:
        ConfigError: R is no matrix with orthonormal rows.
    """

    def __init__(self, matrix: Tensor, *, check: bool = True) -> None:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or not matrix.is_floating_point():
            kind = f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ConfigError(f"a rotation of {kind}", value=kind, rule=_ROWS)
        if check:
            unit = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
            distance = float((matrix @ matrix.mT - unit).abs().max()) if matrix.numel() else float("inf")
            if not distance <= _ORTHONORMAL:
                raise ConfigError(
                    f"the rows of the rotation are not orthonormal: R Rᵀ is {distance:.2g} away from I",
                    value=distance,
                    rule=_ROWS,
                    fix="pass peft_reft.interventions.orthonormal_rows(matrix)",
                )
        self.matrix = matrix
        self.width: int = matrix.shape[0]
        self.hidden: int | None = matrix.shape[1]

    def encode(self, hidden: Tensor) -> Tensor:
        """Rh."""
        return hidden @ self.matrix.mT.to(hidden.device, hidden.dtype)

    def lift(self, change: Tensor) -> Tensor:
        """Rᵀ(change)."""
        return change @ self.matrix.to(change.device, change.dtype)

    def offset(self, like: Tensor) -> Tensor:
        """Zero."""
        return like.new_zeros(self.matrix.shape[1])

    def difference(self, hidden: Tensor, source: Tensor) -> Tensor:
        """R(h − s)."""
        return self.encode(hidden - source)


class Pca(Space):
    """Standardised principal components: C((h − μ)/σ).

    Args:
        components: C `[width, hidden]`, orthonormal rows.
        mean: μ `[hidden]`.
        std: σ `[hidden]`; None for 1.
        keep_rest: whether what lies outside of the components stays in h.

    Raises:
        ConfigError: components that are not orthonormal, or shapes or numbers that do not fit them.
    """

    def __init__(self, components: Tensor, mean: Tensor, std: Tensor | None = None, *, keep_rest: bool = True) -> None:
        self.rotation: Rotation = Rotation(components)
        self.mean = mean
        self.std: Tensor = torch.ones_like(mean) if std is None else std
        self.width: int = components.shape[0]
        self.hidden: int | None = components.shape[1]
        if self.mean.shape != (self.hidden,) or self.std.shape != (self.hidden,):
            raise ConfigError(
                f"components {list(components.shape)}, mean {list(mean.shape)}, std {list(self.std.shape)}",
                value=list(mean.shape),
                rule="components are [width, hidden], mean and std [hidden]",
            )
        if not bool(self.mean.isfinite().all() and (self.std > 0).all() and self.std.isfinite().all()):
            raise ConfigError(
                "mean or std of the components", value=self.std.tolist(), rule="μ is finite, σ is finite and above 0"
            )
        self.keep_rest = keep_rest

    @classmethod
    def fit(cls, hidden: Tensor, width: int, *, standardise: bool = True, keep_rest: bool = True) -> Pca:
        """The first principal components of collected values.

        Args:
            hidden: `[..., hidden]`, from `collect`.
            width: number of components.
            standardise: divide each coordinate by its standard deviation first.
            keep_rest: as in the class.

        Returns:
            The space.

        Raises:
            ConfigError: a width below 1, or above what the values allow.
        """
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        if not 1 <= width <= min(rows.shape):
            raise ConfigError(
                f"width={width} components of {rows.shape[0]} values of size {rows.shape[1]}",
                value=width,
                rule=f"1 to {min(rows.shape)}",
            )
        std = rows.std(0).clamp(min=1e-6) if standardise else torch.ones_like(rows[0])
        mean = rows.mean(0)
        components = torch.linalg.svd((rows - mean) / std, full_matrices=False).Vh[:width]
        return cls(components, mean, std, keep_rest=keep_rest)

    def encode(self, hidden: Tensor) -> Tensor:
        """C((h − μ)/σ)."""
        return self.rotation.encode((hidden - self.mean.to(hidden.device)) / self.std.to(hidden.device))

    def lift(self, change: Tensor) -> Tensor:
        """σ ⊙ Cᵀ(change)."""
        return self.rotation.lift(change) * self.std.to(change.device)

    def offset(self, like: Tensor) -> Tensor:
        """μ."""
        return self.mean.to(like.device)

    def difference(self, hidden: Tensor, source: Tensor) -> Tensor:
        """C((h − s)/σ)."""
        return self.rotation.encode((hidden - source) / self.std.to(hidden.device))


class Autoencoder(Space):
    """Latents of a sparse autoencoder: z = u · [u > max(θ, 0)], u = E(h − d) + e; decoded Dᵀz + d′.

    θ = 0 is a ReLU, θ > 0 a JumpReLU (arXiv 2407.14435).

    Args:
        encoder: E `[width, hidden]`.
        decoder: D `[width, hidden]`.
        encoder_bias: e `[width]`.
        decoder_bias: d′ `[hidden]`.
        threshold: θ `[width]`; None for 0.
        centre: whether d′ is taken off h before encoding (d = d′), else d = 0.
        keep_rest: whether the reconstruction error stays in h.

    Raises:
        ConfigError: tensors whose shapes do not fit one another.
    """

    def __init__(
        self,
        encoder: Tensor,
        decoder: Tensor,
        *,
        encoder_bias: Tensor,
        decoder_bias: Tensor,
        threshold: Tensor | None = None,
        centre: bool = False,
        keep_rest: bool = True,
    ) -> None:
        given = {"encoder": encoder, "decoder": decoder, "encoder_bias": encoder_bias, "decoder_bias": decoder_bias}
        if threshold is not None:
            given["threshold"] = threshold
        shapes = {name: list(tensor.shape) for name, tensor in given.items()}
        width, hidden = encoder.shape if encoder.dim() == 2 else (-1, -1)
        wanted = {
            "encoder": [width, hidden],
            "decoder": [width, hidden],
            "encoder_bias": [width],
            "decoder_bias": [hidden],
            "threshold": [width],
        }
        if any(shape != wanted[name] for name, shape in shapes.items()):
            raise ConfigError(
                f"an autoencoder of {', '.join(f'{name} {shape}' for name, shape in shapes.items())}",
                value=shapes,
                rule="encoder, decoder: [width, hidden]; encoder_bias, threshold: [width]; decoder_bias: [hidden]",
            )
        self.encoder: Tensor = encoder
        self.decoder: Tensor = decoder
        self.encoder_bias: Tensor = encoder_bias
        self.decoder_bias: Tensor = decoder_bias
        self.threshold: Tensor = torch.zeros_like(encoder_bias) if threshold is None else threshold.clamp(min=0)
        self.centre = centre
        self.keep_rest = keep_rest
        self.width: int = width
        self.hidden: int | None = hidden

    def encode(self, hidden: Tensor) -> Tensor:
        """The latents z."""
        centred = hidden - self.decoder_bias.to(hidden) if self.centre else hidden
        raw = centred @ self.encoder.mT.to(hidden) + self.encoder_bias.to(hidden)
        return raw * (raw > self.threshold.to(hidden))

    def lift(self, change: Tensor) -> Tensor:
        """Dᵀ(change)."""
        return change @ self.decoder.to(change)

    def offset(self, like: Tensor) -> Tensor:
        """d′."""
        return self.decoder_bias.to(like)


_ROWS = "R is [rank, hidden] with orthonormal rows: R Rᵀ = I"
