"""Spaces: what they encode, what a change of features changes, and that no bit changes where no feature does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft.causal import Autoencoder, Pca, Rotation, Site, Space, collect, interchange, put
from peft_reft.causal.interchange import intervene
from peft_reft.hub_format.errors import ConfigError

from .networks import numbers, rotation

BASE, SOURCE = numbers(5, 4, seed=1), numbers(5, 4, seed=2)


class Own(Space):
    """A space of one's own: features that overflow, and changes that are lifted to −0."""

    width = 1

    def encode(self, hidden: Tensor) -> Tensor:
        return (1000 * hidden.abs()).exp().sum(-1, keepdim=True)

    def lift(self, change: Tensor) -> Tensor:
        return torch.where(change == 0, -0.0, change).expand(-1, 4)


def test_no_bit_changes_in_a_space_of_ones_own() -> None:
    """Not where features are infinite, nor where h is −0."""
    values = torch.tensor([[1.0, -2.0, 0.5, -0.0], [0.0, -0.0, 0.0, 0.0]])
    assert Own().encode(values)[0].isinf()
    found = interchange(nn.Identity(), values, values.clone(), Site(module="", space=Own()))
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_the_difference_in_a_rotation_is_that_of_the_vectors() -> None:
    """Large parts that both share cancel before anything is rounded."""
    rows = rotation(3, 4)
    hidden, source = 3e5 + BASE, 3e5 + SOURCE
    expected = (hidden.double() - source.double()) @ rows.double().mT
    assert_close(Rotation(rows).difference(hidden, source).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_rotation_is_checked_unless_one_says_otherwise() -> None:
    rows = rotation(2, 4)
    near = rows + 1e-6
    assert torch.equal(Rotation(near).matrix, near)
    for wrong in (rows + 1e-3, rows * 1.001, torch.full((2, 4), float("nan")), torch.zeros(0, 4)):
        with pytest.raises(ConfigError, match="not orthonormal"):
            Rotation(wrong)
        assert Rotation(wrong, check=False).matrix is wrong


def test_a_rotation_in_the_numbers_of_autocast() -> None:
    """Inside of autocast the edit is computed as outside of it."""
    site = Site(module="", space=Rotation(rotation(2, 4)))
    held, found = collect(nn.Identity(), BASE, site), interchange(nn.Identity(), BASE, SOURCE, site)
    changed = intervene(nn.Identity(), BASE, put(site, torch.tensor([1.0, 2.0])))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(collect(nn.Identity(), BASE, site), held)
        assert torch.equal(interchange(nn.Identity(), BASE, SOURCE, site), found)
        assert torch.equal(intervene(nn.Identity(), BASE, put(site, torch.tensor([1.0, 2.0]))), changed)


DATA = numbers(60, 4, seed=3) * torch.tensor([4.0, 2.0, 1.0, 0.5]) + torch.tensor([50.0, -20.0, 0.0, 3.0])


@pytest.mark.parametrize("standardise", [True, False])
def test_components_are_eigenvectors_of_the_covariance(standardise: bool) -> None:
    space = Pca.fit(DATA.reshape(6, 10, 4), 2, standardise=standardise)
    covariance = torch.corrcoef(DATA.mT) if standardise else torch.cov(DATA.mT)
    values, vectors = torch.linalg.eigh(covariance)
    for row, column in zip(space.rotation.matrix, (-1, -2), strict=True):
        assert_close(abs(row @ vectors[:, column]), torch.tensor(1.0))
    features = space.encode(DATA)
    assert_close(features.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    assert_close(features.var(0), values[[-1, -2]], atol=1e-4, rtol=1e-4)


def test_a_coordinate_that_never_changes_has_no_infinite_components() -> None:
    constant = DATA.clone()
    constant[:, 2] = 7.0
    space = Pca.fit(constant, 3)
    assert bool(space.encode(constant).isfinite().all())
    assert_close(space.rotation.matrix[:, 2], torch.zeros(3), atol=1e-5, rtol=0)


def test_components_of_half_precision_values() -> None:
    assert_close(Pca.fit(DATA.bfloat16(), 2).rotation.matrix, Pca.fit(DATA.bfloat16().float(), 2).rotation.matrix)


@pytest.mark.parametrize("keep_rest", [True, False])
def test_what_components_do_not_express_stays_or_goes(keep_rest: bool) -> None:
    space = Pca.fit(DATA, 2, keep_rest=keep_rest)
    site = Site(module="", space=space)
    found = interchange(nn.Identity(), DATA[:5], DATA[5:10], site)
    assert_close(space.encode(found), space.encode(DATA[5:10]), atol=1e-4, rtol=1e-4)
    rows = space.rotation.matrix
    rest = torch.eye(4) - rows.mT @ rows
    outside = (DATA[:5] - space.mean) / space.std @ rest
    assert_close(
        (found - space.mean) / space.std @ rest, outside if keep_rest else torch.zeros(5, 4), atol=1e-4, rtol=0
    )
    same = interchange(nn.Identity(), DATA[:5], DATA[:5].clone(), site)
    assert torch.equal(same, DATA[:5]) == keep_rest


def test_a_latent_at_its_threshold_is_off() -> None:
    eye = torch.eye(3)
    bias, threshold = torch.zeros(3), torch.tensor([0.5, -1.0, 0.0])
    space = Autoencoder(eye, eye, encoder_bias=bias, decoder_bias=bias, threshold=threshold)
    values = torch.tensor([[0.5, -0.5, 0.0], [0.75, 0.5, 1e-6]])
    assert torch.equal(space.encode(values), torch.tensor([[0.0, 0.0, 0.0], [0.75, 0.5, 1e-6]]))


@pytest.mark.parametrize("keep_rest", [True, False])
@pytest.mark.parametrize("centre", [True, False])
def test_the_error_of_an_autoencoder_stays_or_goes(centre: bool, keep_rest: bool) -> None:
    space = Autoencoder(
        numbers(6, 4, seed=4),
        numbers(6, 4, seed=5),
        encoder_bias=numbers(6, seed=6),
        decoder_bias=numbers(4, seed=7),
        centre=centre,
        keep_rest=keep_rest,
    )
    units = [0, 2]
    found = interchange(nn.Identity(), BASE, SOURCE, Site(module="", space=space, units=units))
    latents = [
        torch.relu((h - space.decoder_bias if centre else h) @ space.encoder.mT + space.encoder_bias)
        for h in (BASE, SOURCE)
    ]
    mixed = latents[0].clone()
    mixed[:, units] = latents[1][:, units]
    decoded = mixed @ space.decoder + space.decoder_bias
    error = BASE - latents[0] @ space.decoder - space.decoder_bias
    assert_close(found, decoded + error if keep_rest else decoded)
    same = interchange(nn.Identity(), BASE, BASE.clone(), Site(module="", space=space))
    assert torch.equal(same, BASE) == keep_rest


def test_what_a_space_of_ones_own_leaves_out_is_said() -> None:
    for method in ("encode", "lift", "offset"):
        with pytest.raises(NotImplementedError):
            getattr(Space(), method)(BASE)
