"""Alignment search: it finds what is there, from several seeds, and not what is not there."""

from __future__ import annotations

import collections
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    CausalModel,
    Distribution,
    Rotation,
    Site,
    class_loss,
    every_pair,
    interchange,
    sample_pairs,
)
from peft_reft.causal.boundary import boundary_masks, boundary_units
from peft_reft.causal.losses import target_probabilities
from peft_reft.hub_format.errors import CausalModelError, SiteError

from .networks import rotation
from .test_accuracy import AND, decode, encode
from .test_interchange import Conjunction

SITE = Site(module="hidden")


def loss(output: Tensor, labels: Any) -> Tensor:
    return binary_cross_entropy_with_logits(10 * output, torch.tensor(labels, dtype=torch.float32))


def search(variables: Any, seed: int = 0, **further: Any) -> AlignmentSearch:
    network = further.pop("network", None) or Conjunction()
    settings = {"encode": encode, "loss": loss, "seed": seed, **further}
    return AlignmentSearch(
        network, settings.pop("causal_model", AND), settings.pop("site", SITE), variables, **settings
    )


def loss_of(found: AlignmentSearch, pairs: Any) -> Tensor:
    return found(**found.collator(found.dataset(pairs)))["loss"]


TRAINING = sample_pairs(AND, ["A", "B"], 400, seed=1, changing=0.5)
EVERY = [pair for names in (["A"], ["B"], ["A", "B"]) for pair in every_pair(AND, names)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_angle_of_the_conjunction(seed: int) -> None:
    found = search({"A": 1, "B": 1}, seed)
    losses = found.fit(TRAINING, steps=120, learning_rate=0.05, batch_size=64, seed=seed)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert found.accuracy(EVERY, decode=decode).value >= 0.99
    across, up = found.rotation[0].tolist()
    angle = math.degrees(math.atan2(up, across)) % 180
    assert abs(angle - 20) < 15  # every angle in a range is exact, 20 degrees among them


def test_it_does_not_find_the_variables_of_another_causal_model() -> None:
    """What is the exclusive or of P and Q is not there to be found."""
    wrong = CausalModel(
        {"A": lambda P, Q: P != Q, "V": lambda A, P: P and not A}, inputs={"P": (False, True), "Q": (False, True)}
    )
    found = search({"A": 1}, causal_model=wrong)
    pairs = list(every_pair(wrong, ["A"]))
    found.fit(pairs, steps=120, learning_rate=0.05, batch_size=16, seed=0)
    assert found.accuracy(pairs, decode=decode).value < 0.9


def test_the_network_gets_no_gradient_and_keeps_its_mode() -> None:
    network = Conjunction().train()
    before = network.hidden.weight.detach().clone()
    found = search({"A": 1, "B": 1}, network=network)
    found.fit(TRAINING, steps=2, learning_rate=0.05, batch_size=8, seed=0)
    assert network.hidden.weight.grad is None
    assert network.training
    assert torch.equal(network.hidden.weight, before)
    assert {name for name, _ in found.named_parameters()} == {"places.0.raw"}


def test_dropout_of_a_network_in_training_mode_does_not_matter() -> None:
    network = torch.nn.Sequential(collections.OrderedDict(hidden=torch.nn.Linear(2, 6), drop=torch.nn.Dropout(0.5)))
    network.append(torch.nn.Linear(6, 1)).append(torch.nn.Flatten(0))
    found = search({"A": 2}, network=network.train())
    pairs = list(every_pair(AND, ["A"]))
    losses = [float(loss_of(found, pairs).detach()) for _ in range(2)]
    network.eval()
    assert losses == [float(loss_of(found, pairs).detach())] * 2


def test_the_rotation_stays_orthonormal_and_the_seed_decides() -> None:
    fits = []
    for _ in range(2):
        found = search({"A": 1, "B": 1}, seed=4)
        fits.append(found.fit(TRAINING, steps=5, learning_rate=0.2, batch_size=8, seed=4))
        assert_close(found.rotation @ found.rotation.mT, torch.eye(2), atol=1e-6, rtol=0)
    assert fits[0] == fits[1]
    assert not torch.equal(search({"A": 1}, seed=4).raw, search({"A": 1}, seed=5).raw)


def test_the_loss_is_that_of_the_interchange_in_the_rotation() -> None:
    found = search({"A": 1, "B": 1}, seed=3)
    pairs = list(every_pair(AND, ["A", "B"]))[:20]
    base = encode([pair.base for pair in pairs])
    sources = {name: encode([pair.sources[name] for pair in pairs]) for name in "AB"}
    output = interchange(Conjunction(), base, sources, found.alignment)
    assert_close(loss_of(found, pairs), loss(output, [pair.label(AND) for pair in pairs]))


class Wide(torch.nn.Module):
    """P and Q, each in two of eight hidden directions; the other four do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = rotation(4, 8)
        self.hidden = torch.nn.Linear(2, 8, bias=False)
        each = torch.tensor([[1.0, 0], [0.5, 0], [0, 1.0], [0, 0.5]])
        self.hidden.weight = torch.nn.Parameter(self.rows.mT @ each)

    def forward(self, inputs: Tensor) -> Tensor:
        read = self.hidden(inputs) @ self.rows.mT
        p, q = read[:, :2].sum(1), read[:, 2:].sum(1)
        return torch.minimum(p, q) - 0.75


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_boundaries(seed: int) -> None:
    found = search(["A", "B"], seed, network=Wide())
    assert found.boundaries is not None
    found.fit(TRAINING, steps=250, learning_rate=0.03, batch_size=64, seed=seed, boundary_weight=0.1)
    assert found.accuracy(EVERY, decode=decode).value >= 0.99
    units = found.units()
    assert units["A"].stop == units["B"].start
    assert units["B"].stop < 8


class Scripted(AlignmentSearch):
    """A search whose validation finds what is written down, start by start."""

    found: list[int]

    def accuracy(self, *_: Any, **__: Any) -> Accuracy:
        self.seen.append(self.raw.detach().clone())
        correct = self.found[len(self.seen) - 1]
        if correct < 0:
            raise CausalModelError("the boundaries leave no coordinate", code="causal.boundary")
        return Accuracy(correct, 10, (0.0, 1.0), 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "restarts", "kept", "starts"),
    [
        ([3, 10, 5], 2, 1, 2),
        ([3, 8, 5], 2, 1, 3),
        ([10, 3, 5], 2, 0, 1),
        ([3, 8, 9], 1, 1, 2),
        ([3, 9, 9], 0, 0, 1),
        ([-1, 0, 0], 1, 1, 2),
    ],
    ids=["enough", "best", "first", "no more", "none", "empty boundaries"],
)
def test_further_starts_where_one_does_not_find_enough(
    found: list[int], restarts: int, kept: int, starts: int
) -> None:
    search_ = Scripted(Conjunction(), AND, SITE, {"A": 1}, encode=encode, loss=loss, seed=0)
    search_.found, search_.seen = found, []
    pairs = sample_pairs(AND, ["A"], 8, seed=0)
    further = {"validation": pairs, "decode": decode, "restarts": restarts, "enough": 0.95}
    search_.fit(pairs, steps=2, learning_rate=0.05, batch_size=4, seed=0, **further)
    assert len(search_.seen) == starts
    assert torch.equal(search_.raw, search_.seen[kept])
    assert len({tuple(raw.flatten().tolist()) for raw in search_.seen}) == starts


def test_starts_are_decided_by_a_validation() -> None:
    pairs = sample_pairs(AND, ["A"], 8, seed=0)
    settings = {"steps": 1, "learning_rate": 0.1, "batch_size": 4, "seed": 0}
    for further in ({"restarts": 1}, {"validation": pairs}, {"decode": decode}):
        with pytest.raises(CausalModelError, match="go together"):
            search({"A": 1}).fit(pairs, **settings, **further)
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"restarts": -1}):
        with pytest.raises(CausalModelError, match="one or more steps"):
            search({"A": 1}).fit(pairs, **{**settings, **wrong})


def test_boundary_masks_are_sharp_at_low_temperature() -> None:
    shares = torch.tensor([0.25, 0.5])
    masks = boundary_masks(shares, 8, 1e-3)
    assert_close(masks[0], torch.tensor([1.0] * 2 + [0.0] * 6))
    assert_close(masks[1], torch.tensor([0.0] * 2 + [1.0] * 4 + [0.0] * 2))
    assert boundary_units(shares, 8) == [range(0, 2), range(2, 6)]
    assert boundary_units(torch.tensor([0.75, 0.75]), 8) == [range(0, 6), range(6, 8)]
    soft = boundary_masks(shares, 8, 5.0)[0]
    assert 0.05 < float(soft[-1]) < float(soft[0]) < 0.95


def test_class_loss_of_values_and_distributions() -> None:
    labels = ["b", Distribution({"a": 0.25, "b": 0.75})]
    assert_close(target_probabilities(labels, "ab"), torch.tensor([[0.0, 1.0], [0.25, 0.75]]))
    scores = torch.tensor([[0.3, -1.0], [0.25, 0.75]]).log_softmax(-1)
    target = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    assert_close(class_loss("ab", logits=lambda output: output)(scores, labels), -(target * scores).sum(-1).mean())
    exact = torch.tensor([[0.25, 0.75]]).log()
    assert_close(class_loss("ab", logits=lambda output: output, kl=True)(exact, labels[1:]), torch.tensor(0.0))
    with pytest.raises(CausalModelError, match="'c'"):
        target_probabilities(["c"], "ab")


def test_a_loss_that_does_not_fit_says_what_it_gets() -> None:
    for wrong, message in (
        (torch.nn.BCEWithLogitsLoss(), r"labels such as (True|False)"),
        (lambda output, labels: output, r"gave a tensor of shape \[4\]"),
        (lambda output, labels: 0.5, "gave float"),
    ):
        with pytest.raises(CausalModelError, match=message):
            search({"A": 1, "B": 1}, loss=wrong).fit(TRAINING, steps=1, learning_rate=0.1, batch_size=4, seed=0)


def test_refusals() -> None:
    with pytest.raises(SiteError, match="leave them out"):
        search({"A": 1}, site=Site(module="hidden", space=Rotation(torch.eye(2))))
    with pytest.raises(CausalModelError, match="together at most 2"):
        search({"A": 1, "B": 2})
    with pytest.raises(CausalModelError, match="dimension 1 or more"):
        search({"A": 0})
    with pytest.raises(CausalModelError, match="no variable"):
        search({"Z": 1})
    with pytest.raises(CausalModelError, match=r"unknown variables \['B'\]"):
        search({"A": 1}).fit(TRAINING, steps=1, learning_rate=0.1, batch_size=4, seed=0)
    found = search(["A", "B"])
    assert found.boundaries is not None
    found.boundaries.data.zero_()
    with pytest.raises(CausalModelError, match="no coordinate to 'A'"):
        found.units()
