"""Interventions that pyvene recorded, and the same ones here: logits, collected values, gradients, generation.

The small ones in `tests/data` always run; all of them run where the whole set lies beside the checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft.causal import (
    Autoencoder,
    Column,
    Edit,
    Pca,
    Rotation,
    Site,
    add,
    collect,
    interchange,
    intervene,
    put,
    subtract,
    zero,
)

from .golden import COPIED, FULL, Recorded

TOLERANCE = 2e-5
NAMED = ("block_output", "block_input", "attention_output", "mlp_output")


class Case(Recorded):
    @property
    def kind(self) -> str:
        return self.manifest["interventions"][0]["type"].removesuffix("Intervention")  # type: ignore[no-any-return]

    def parameter(self, name: str, index: int = 0) -> Tensor:
        return self.tensors[f"p/{index}/{name}"]

    def inputs(self, side: str = "") -> dict[str, Tensor]:
        return {name: self.tensors[f"in/{side}{name}"] for name in ("input_ids", "attention_mask")}

    def model(self) -> nn.Module:
        path = self.folder.parent / "models" / self.manifest["model"]
        config = transformers.AutoConfig.from_pretrained(path)
        model: nn.Module = getattr(transformers, config.architectures[0]).from_pretrained(path)
        return model.eval()

    def site(self, index: int = 0, **further: Any) -> Site:
        entry = self.manifest["interventions"][index]
        if entry["component"] in NAMED:
            return Site(layer=entry["layer"], component=entry["component"], **further)
        if "slice" in entry:
            further["units"] = range(*entry["slice"])
        return Site(module=entry["module"], on_input=entry["io"] == "input", **further)


def cases() -> list[Case]:
    for root in (FULL, COPIED):
        found = [Case(path.parent) for path in sorted(root.glob("pv_*/manifest.json"))]
        if found:
            return found
    return []


CASES = cases()
LINKED = [case for case in CASES if "_linked_" in str(case)]
SERIAL = [case for case in CASES if case.manifest["mode"] == "serial"]
WITH_SOURCES = [case for case in CASES if case.manifest["n_sources"] and case not in (*LINKED, *SERIAL)]
EDITED = [
    case for case in CASES if case.kind in ("Addition", "Subtraction", "Zero") and not case.manifest["n_sources"]
]


def named(name: str) -> Case:
    """A case, or a skip where the whole set is missing."""
    for case in CASES:
        if str(case) == name:
            return case
    pytest.skip(f"{name} is only in the folder shared/goldens beside the checkout")


def test_the_copied_cases_are_there() -> None:
    assert len(list(COPIED.glob("pv_*/manifest.json"))) >= 5
    assert WITH_SOURCES
    assert EDITED


def boundary_mask(boundary: Tensor, temperature: Tensor, width: int) -> Tensor:
    place = torch.arange(width, dtype=torch.float32)
    edge = boundary.clamp(1e-3, 1) * width
    return torch.sigmoid(place / temperature) * torch.sigmoid((edge - place) / temperature)


def positions(case: Case) -> tuple[list[Any], list[Any]]:
    """Per intervention the positions in source and base: an int, or a list of rows."""
    locations = case.manifest["unit_locations"]["sources->base"]
    count = len(case.manifest["interventions"])
    if isinstance(locations, int):
        return [locations] * count, [locations] * count
    source, base = case.manifest["spec"]["checker_ul"]["sources->base"] if case.manifest["spec"] else locations
    return ([source], [base]) if isinstance(source, int) else (source, base)


def rows(place: Any) -> Tensor:
    return torch.full((2, 1), place) if isinstance(place, int) else torch.tensor(place)


def what(case: Case, index: int) -> dict[str, Any]:
    """What of the vectors is exchanged."""
    further: dict[str, Any] = {}
    subspaces = case.manifest["subspaces"]
    partition = case.manifest["interventions"][index]["subspace_partition"]
    rotation = case.tensors.get(f"eff/{index}/rotation")
    if rotation is not None:
        further["space"] = Rotation(rotation.mT)
        further["joint"] = True
    if partition is not None and isinstance(subspaces, int):
        further["units"] = partition[subspaces]
    elif partition is not None:  # one part per row
        mask = torch.zeros(2, rotation.shape[1] if rotation is not None else 32)
        for row, (part,) in enumerate(subspaces[0]):
            mask[row, partition[part]] = 1
        further["mask"] = mask
    elif subspaces is not None:
        further["units"] = subspaces
    if case.kind == "BoundlessRotatedSpace":
        further["mask"] = boundary_mask(case.parameter("intervention_boundaries"), case.parameter("temperature"), 32)
    elif case.kind == "SigmoidMask":
        further["mask"] = torch.sigmoid(case.parameter("mask") / case.parameter("temperature"))
    elif case.kind == "PCARotatedSpace":
        further["space"] = Pca(
            case.parameter("pca_components"), case.parameter("pca_mean"), case.parameter("pca_std"), keep_rest=False
        )
    elif case.kind == "Autoencoder":
        further["space"] = Autoencoder(
            case.parameter("autoencoder.encoder.0.weight"),
            case.parameter("autoencoder.decoder.0.weight").mT,
            encoder_bias=case.parameter("autoencoder.encoder.0.bias"),
            decoder_bias=case.parameter("autoencoder.decoder.0.bias"),
            centre=True,
            keep_rest=False,
        )
        further["units"] = [32]
    elif case.kind == "JumpReLUAutoencoder":
        further["space"] = Autoencoder(
            case.parameter("W_enc").mT,
            case.parameter("W_dec"),
            encoder_bias=case.parameter("b_enc"),
            decoder_bias=case.parameter("b_dec"),
            threshold=case.parameter("threshold"),
            keep_rest=False,
        )
        further["units"] = range(32)
    return further


def interchanged(case: Case, what_of: Callable[[Case, int], dict[str, Any]] = what) -> Any:
    base = case.inputs()
    source_at, base_at = positions(case)
    sites, sources = {}, {}
    for index in range(len(case.manifest["interventions"])):
        if case.manifest["source_is_none"][index]:
            continue
        name = f"at{index}"
        sites[name] = case.site(index, position=Column(name), **what_of(case, index))
        base[name] = rows(base_at[index])
        sources[name] = {**case.inputs(f"src{index}/"), name: rows(source_at[index])}
    combine = "add" if case.kind == "Addition" else "swap"
    return interchange(case.model(), base, sources, sites, combine=combine)


@pytest.mark.parametrize("case", WITH_SOURCES, ids=str)
def test_interchange(case: Case) -> None:
    with torch.no_grad():
        logits = interchanged(case).logits
        plain = case.model()(**case.inputs()).logits
    assert_close(logits, case.tensors["out/logits"], atol=TOLERANCE, rtol=0)
    assert (plain - case.tensors["out/logits"]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("case", EDITED, ids=str)
def test_edit(case: Case) -> None:
    (place,) = case.manifest["unit_locations"].values()
    site = case.site(position=tuple(place), units=case.manifest["subspaces"])
    model = case.model()
    edit = edit_of(case, site)
    with torch.no_grad():
        logits = intervene(model, case.inputs(), edit).logits
        plain = model(**case.inputs()).logits
    assert_close(logits, case.tensors["out/logits"], atol=TOLERANCE, rtol=0)
    assert (plain - case.tensors["out/logits"]).abs().max() > 100 * TOLERANCE
    if "gen/ids" not in case.tensors:
        return
    ids = case.tensors["in/input_ids"]
    while ids.shape[1] < case.tensors["gen/ids"].shape[1]:
        with torch.no_grad():
            ids = torch.cat([ids, intervene(model, ids, edit).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, case.tensors["gen/ids"])


def edit_of(case: Case, site: Site) -> Edit:
    if case.kind == "Zero":
        return zero(site)
    given = case.tensors.get("in/source_representation", case.tensors.get("p/0/source_representation"))
    assert given is not None
    value = given if site.units is None else given[list(site.units)]
    return (add if case.kind == "Addition" else subtract)(site, value)


def linked(case: Case, rotation: Rotation) -> Tensor:
    """There the second one's base is the edited output of the first, which is put at its place here."""
    model = case.model()
    first, second = case.site(0, position=4), case.site(1, position=4)
    given = [collect(model, case.inputs(f"src{i}/"), case.site(i, position=4, space=rotation)) for i in range(2)]
    swap = put(case.site(0, position=4, space=rotation), given[0])
    edited = collect(model, case.inputs(), first, [swap])
    edits = [swap, put(second, edited), put(case.site(1, position=4, space=rotation), given[1])]
    logits: Tensor = intervene(model, case.inputs(), edits).logits
    return logits


@pytest.mark.parametrize("case", LINKED, ids=str)
def test_linked_interventions(case: Case) -> None:
    with torch.no_grad():
        logits = linked(case, Rotation(case.tensors["eff/0/rotation"].mT))
    assert_close(logits, case.tensors["out/logits"], atol=TOLERANCE, rtol=0)


def test_collect() -> None:
    case = named("pv_collect_gpt2")
    sites = {str(index): case.site(index, position=(0, 2, 4)) for index in range(2)}
    with torch.no_grad():
        found = collect(case.model(), case.inputs(), sites)
        assert_close(case.model()(**case.inputs()).logits, case.tensors["out/logits"], atol=TOLERANCE, rtol=0)
    for index, values in found.items():
        assert_close(values, case.tensors[f"out/collected/{index}"], atol=TOLERANCE, rtol=0)


def test_a_source_that_is_edited_itself() -> None:
    """Serial: the second source's run is under the interchange with the first."""
    case = named("pv_vanilla_gpt2_serial")
    locations = case.manifest["unit_locations"]
    (from_0,), (to_1,) = locations["source_0->source_1"]
    (from_1,), (to_base,) = locations["source_1->base"]
    first = {**case.inputs("src0/"), "first": rows(from_0)}
    second = {**case.inputs("src1/"), "first": rows(to_1), "second": rows(from_1)}
    model = case.model()
    at_first, at_second = case.site(0, position=Column("first")), case.site(1, position=Column("second"))
    with torch.no_grad():
        held = collect(model, first, at_first)
        given = collect(model, second, at_second, [put(at_first, held)])
        logits = intervene(model, {**case.inputs(), "second": rows(to_base)}, put(at_second, given)).logits
    assert_close(logits, case.tensors["out/logits"], atol=TOLERANCE, rtol=0)


def loss_of(case: Case, logits: Tensor) -> Tensor:
    """The mean cross-entropy of the next tokens, compared with the recorded one."""
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), case.tensors["in/labels"][:, 1:].flatten())
    assert_close(loss[None], case.tensors["out/loss"].reshape(1), atol=TOLERANCE, rtol=0)
    return loss


@pytest.mark.parametrize("case", [case for case in CASES if "geff/0/rotation" in case.tensors], ids=str)
def test_gradients_of_the_rotation(case: Case) -> None:
    """The Euclidean gradient of the loss in R.

    Of a square R pyvene rotates all of h back, RᵀRh, which here stays h: the same where R is orthogonal, so gradients
    are the same in the directions in which it stays so.
    """
    matrix = case.tensors["eff/0/rotation"].clone().requires_grad_()
    space = Rotation(matrix.mT, check=False)
    if case in LINKED:
        logits = linked(case, space)
    else:
        logits = interchanged(case, lambda case, index: {**what(case, index), "space": space}).logits
    (found,) = torch.autograd.grad(loss_of(case, logits), matrix)
    wanted = case.tensors["geff/0/rotation"]
    if matrix.shape[0] == matrix.shape[1]:
        inside = [matrix.detach().mT @ gradient for gradient in (found, wanted)]
        found, wanted = (gradient - gradient.mT for gradient in inside)
    assert wanted.abs().max() > 20 * TOLERANCE
    assert_close(found, wanted, atol=TOLERANCE, rtol=1e-3)


def test_gradients_of_a_mask() -> None:
    case = named("pv_sigmask_llama")
    mask = case.parameter("mask").clone().requires_grad_()
    weight = torch.sigmoid(mask / case.parameter("temperature"))
    logits = interchanged(case, lambda case, index: {**what(case, index), "mask": weight}).logits
    (found,) = torch.autograd.grad(loss_of(case, logits), mask)
    assert_close(found, case.tensors["g/0/mask"], atol=TOLERANCE, rtol=1e-3)


def test_every_case_is_compared() -> None:
    """Of logits; a case of a kind that no test takes up must not pass unseen."""
    compared = {str(case) for case in (*WITH_SOURCES, *EDITED, *LINKED, *SERIAL)} | {"pv_collect_gpt2"}
    assert {str(case) for case in CASES} <= compared
    assert {str(case) for case in SERIAL} <= {"pv_vanilla_gpt2_serial"}


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "BoundlessRotatedSpace"], ids=str)
def test_gradients_of_the_boundary(case: Case) -> None:
    rotation = case.tensors["eff/0/rotation"].clone().requires_grad_()
    boundary = case.parameter("intervention_boundaries").clone().requires_grad_()
    temperature = case.parameter("temperature").clone().requires_grad_()

    def learned(_: Case, __: int) -> dict[str, Any]:
        return {
            "space": Rotation(rotation.mT, check=False),
            "mask": boundary_mask(boundary, temperature, 32),
        }

    loss = loss_of(case, interchanged(case, learned).logits)
    found = torch.autograd.grad(loss, (boundary, temperature))
    assert_close(found[0], case.tensors["g/0/intervention_boundaries"], atol=TOLERANCE, rtol=1e-3)
    assert_close(found[1], case.tensors["g/0/temperature"], atol=TOLERANCE, rtol=1e-3)
