"""Every golden case of pyreft and adapters, imported and run through the public forward and generate.

The small ones in `tests/data` always run; all of them run where the whole set lies beside the checkout.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from peft_reft.hub_format.positions import First, parse_positions

from .golden import COPIED, FULL, Case, case_names

PREFIXES = ("pr_", "ad_")
_COPIED = [COPIED / name for prefix in PREFIXES for name in case_names(COPIED, prefix)]
_ALL = [FULL / name for prefix in PREFIXES for name in case_names(FULL, prefix)]
CASES = [Case(folder) for folder in _ALL or _COPIED]


def test_the_copied_cases_are_there() -> None:
    assert len(_COPIED) >= 6


def test_the_whole_set_is_there() -> None:
    if not _ALL:
        pytest.skip(
            f"the folder shared/goldens beside the checkout is missing; {len(_COPIED)} copied cases ran instead"
        )


def runs(case: Case) -> bool:
    """Whether the case means the same here: see `test_where_terms_overlap_a_token_belongs_to_the_first`."""
    return not case.overlaps


@pytest.fixture(params=[case for case in CASES if runs(case)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def tolerance(case: Case) -> float:
    # bfloat16: the peer rounds W, here it is float32; processors with AVX512-BF16 multiply it otherwise, 3.4e-2
    return 2e-5 if case.dtype == torch.float32 else 4e-2


def at_real_tokens(logits: Tensor, case: Case) -> Tensor:
    return logits[case.tensors["in/attention_mask"].bool()] if logits.dim() == 3 else logits


def test_logits_and_loss(case: Case, tmp_path: Path) -> None:
    model = case.model(tmp_path)
    output = model(**case.inputs, intervention_locations=case.locations)
    expected = case.tensors["out/logits"]
    difference = at_real_tokens(output.logits, case).float() - at_real_tokens(expected, case).float()
    assert difference.abs().max() <= tolerance(case)
    assert abs(float(output.loss.detach()) - float(case.tensors["out/loss"])) <= tolerance(case)


def spec_columns(case: Case) -> list[Tensor] | None:
    """What our rule edits for the case's spec and prompt lengths, per term; None where the case has none."""
    if not case.from_pyreft or case.manifest["positions"] is None:
        return None
    found = []
    terms = parse_positions(case.manifest["positions"]).terms
    for row, length in zip(case.tensors["in/attention_mask"], case.manifest["last_position"], strict=True):
        columns = row.nonzero().flatten()[:length].tolist()
        taken: set[int] = set()
        sets = []
        for term in terms:
            mine = columns[: term.count] if isinstance(term, First) else columns[-term.count :]  # type: ignore[union-attr]
            sets.append(sorted(set(mine) - taken))
            taken |= set(mine)
        found.append(sets)
    return found  # type: ignore[return-value]


def agrees(case: Case) -> bool:
    """Whether the peer edits exactly what our rule says."""
    ours = spec_columns(case)
    if ours is None:
        return False
    tied = case.manifest["share_weights"]
    for row, sets in enumerate(ours):
        theirs = [sorted({c for c in columns[row].tolist() if c >= 0}) for columns in case.terms]
        mine = [sorted(column for columns in sets for column in columns)] if tied else list(sets)  # type: ignore[arg-type]
        if theirs != mine:
            return False
    return True


@pytest.mark.parametrize("case", [case for case in CASES if agrees(case)], ids=str)
def test_the_spec_finds_the_positions_by_itself(case: Case, tmp_path: Path) -> None:
    model = case.model(tmp_path)
    lengths = torch.tensor(case.manifest["last_position"])
    logits = model(**case.inputs, prompt_lengths=lengths).logits
    difference = at_real_tokens(logits, case).float() - at_real_tokens(case.tensors["out/logits"], case).float()
    assert difference.abs().max() <= tolerance(case)


def tangent(gradient: Tensor, rotation: Tensor) -> Tensor:
    """The part of a gradient `[rank, hidden]` that moves R along the manifold of orthonormal rows."""
    inner = gradient @ rotation.mT
    return gradient - (inner + inner.mT) / 2 @ rotation


def largest(tensors: list[Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def test_gradients(case: Case, tmp_path: Path) -> None:
    recorded = case.recorded("g")
    rotations = {int(n.split("/")[1]): t for n, t in case.tensors.items() if n.startswith("geff/")}
    if not recorded and not rotations:
        pytest.skip("the peer could not compute gradients: peer_backward_error in the manifest")
    if case.repeats:
        pytest.skip("a token that is named twice: see test_a_token_named_twice_has_one_gradient")
    model = case.model(tmp_path)
    model(**case.inputs, intervention_locations=case.locations).loss.backward()
    bound = 1e-4 if case.dtype == torch.float32 else 5e-2
    for name in {name for _, name in recorded}:
        pairs = []
        for (index, ours), theirs in recorded.items():
            if ours == name and not unused(case, index, name):
                pairs.append((case.parameter(model, index, name).grad, theirs.float()))
        scale = largest([theirs for _, theirs in pairs] or [torch.ones(1)])
        for mine, theirs in pairs:
            assert mine is not None
            assert (mine - theirs).abs().max() <= bound * scale, name
    for index, theirs in rotations.items():
        if unused(case, index, "rotation"):
            continue
        raw = case.parameter(model, index, "rotation")
        theirs = theirs.float() if theirs.shape == raw.shape and not case.from_pyreft else theirs.float().mT
        assert raw.grad is not None
        wanted, got = (tangent(gradient, raw.detach()) for gradient in (theirs, raw.grad))
        assert (got - wanted).abs().max() <= bound * theirs.abs().max()


@pytest.mark.parametrize("case", [case for case in CASES if case.repeats and not case.overlaps], ids=str)
def test_a_token_named_twice_has_one_gradient(case: Case, tmp_path: Path) -> None:
    """The peer edits such a token once and counts its gradient as often as it is named; here it counts once.

    Naming it once gives the same gradients, and they differ from the peer's.
    """
    model = case.model(tmp_path)
    once = case.locations.clone()
    for row, term, slot in (case.locations >= 0).nonzero().tolist():
        if case.locations[row, term, slot] in case.locations[row, term, :slot]:
            once[row, term, slot] = -1
    found = []
    for locations in (case.locations, once):
        model.zero_grad()
        model(**case.inputs, intervention_locations=locations).loss.backward()
        found.append({key: case.parameter(model, *key).grad.clone() for key in case.recorded("g")})  # type: ignore[union-attr]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not all(torch.allclose(found[0][key], t, rtol=1e-3, atol=1e-6) for key, t in case.recorded("g").items())


def unused(case: Case, index: int, name: str) -> bool:
    """What the peer stores and never uses: Nodireft's projection bias, and the unit of a side without positions."""
    if case.from_pyreft:
        return name == "projection_bias" and case.kind == "direft"
    config, unit = case.manifest["config"], case.manifest["units"][index]["unit"]
    return not config["tied_weights"] and not config[("prefix_positions", "suffix_positions")[unit]]


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if runs(case) and case.recorded("s3/p") and not any(name.startswith("geff/") for name in case.tensors)
    ],
    ids=str,
)
def test_three_steps(case: Case, tmp_path: Path) -> None:
    """Kinds without R: the same optimiser gives the same parameters (R's parametrisation is another one here)."""
    model = case.model(tmp_path)
    settings = case.manifest["optimizer"]
    optimizer = torch.optim.SGD((p for n, p in model.named_parameters() if "reft_" in n), lr=settings["lr"])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**case.inputs, intervention_locations=case.locations).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert_close(torch.tensor(losses, dtype=torch.float64), case.tensors["s3/losses"], rtol=0, atol=5e-5)
    for (index, name), theirs in case.recorded("s3/p").items():
        if not unused(case, index, name):
            assert_close(case.parameter(model, index, name).detach(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case.manifest.get("generate")], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens(case: Case, use_cache: bool, tmp_path: Path) -> None:
    """adapters' cached generation edits every new token (or crashes); what it does without a cache is what it means.

    There its suffix is that of all tokens so far, so it moves: step by step, each a prefill, for such cases.
    """
    model = case.model(tmp_path)
    if not case.from_pyreft and case.manifest["config"]["suffix_positions"]:
        ids = case.tensors["in/input_ids"]
        for _ in range(case.manifest["generate"]["max_new_tokens"]):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        assert ids.tolist() == case.tensors["gen/ids_nocache"].tolist()
        return
    expected = case.tensors["gen/ids" if case.from_pyreft else "gen/ids_nocache"]
    with torch.no_grad():
        ids = model.generate(
            input_ids=case.tensors["in/input_ids"],
            attention_mask=case.tensors["in/attention_mask"],
            max_new_tokens=case.manifest["generate"]["max_new_tokens"],
            do_sample=False,
            pad_token_id=0,
            use_cache=use_cache,
        )
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("case", [case for case in CASES if case.overlaps], ids=str)
def test_where_terms_overlap_a_token_belongs_to_the_first(case: Case, tmp_path: Path) -> None:
    """The peers edit such a token twice, pyreft one after the other, adapters with the last one winning.

    Definition 3.2 of the paper has the position sets of a layer disjoint, and so they are here: the tokens that only
    one term names agree with the peer, and the whole differs from it.
    """
    model = case.model(tmp_path)
    logits = model(**case.inputs, intervention_locations=case.locations).logits
    mine = case.locations.clone()
    for row in range(len(mine)):
        first = set(mine[row, 0].tolist())
        mine[row, 1] = torch.tensor([-1 if column in first else column for column in mine[row, 1].tolist()])
    assert torch.equal(logits, model(**case.inputs, intervention_locations=mine).logits)
    assert (at_real_tokens(logits - case.tensors["out/logits"], case)).abs().max() > 1e-4
