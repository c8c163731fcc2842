"""Alignment search on a transformer: tokenised pairs, padding, positions, several sites, `Trainer` or a plain loop."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import nll_loss
from torch.testing import assert_close

from peft_reft.causal import (
    AlignmentSearch,
    AnnealBoundaries,
    Answers,
    CausalModel,
    Column,
    Distribution,
    InterchangeDataset,
    PadRows,
    Site,
    answered,
    class_loss,
    interchange,
)
from peft_reft.hub_format.errors import CausalModelError, ConfigError, SiteError

from .networks import llama
from .prompts import ANSWERS, answers, prompts, row, task

EXAMPLE = row({"T": 3, "U": 4, "K": 2})
LEFT, RIGHT = PadRows(0, padding_side="left"), PadRows(0, padding_side="right")
AT_T = Column("at")


@cache
def network() -> Answers:
    return answers()


@cache
def model() -> CausalModel:
    return task(network())


def searching(site: Any, variables: Any, encode: Any = LEFT, loss: Any = None, seed: int = 0) -> AlignmentSearch:
    return AlignmentSearch(
        network(),
        model(),
        site,
        variables,
        encode=encode,
        loss=loss or network().loss(),
        seed=seed,
        example=EXAMPLE,
    )


def loss_of(search: AlignmentSearch, data: InterchangeDataset) -> Tensor:
    return search(**search.collator(data.items))["loss"]


def test_answers_are_read_at_the_last_real_token_whatever_the_padding() -> None:
    rows = [row({"T": 5, "U": 6, "K": length}) for length in (1, 3)]
    for each in rows:
        del each["at"]
    alone = torch.cat([network()(torch.tensor([each["input_ids"]])) for each in rows])
    for encode in (LEFT, RIGHT):
        assert_close(network()(**encode(rows)), alone, atol=1e-5, rtol=0)
    whole = network().model(torch.tensor([rows[0]["input_ids"]])).logits
    assert torch.equal(alone[0], whole[0, -1, list(ANSWERS)])
    assert network().decode(torch.eye(8)[[3]]) == ["23"]
    second = Answers(network().model, {0: 20, 1: 21}, position=1)
    assert torch.equal(second(torch.tensor([rows[0]["input_ids"]]))[0], whole[0, 1, [20, 21]])


def test_answers_of_one_token_each() -> None:
    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split("_")]}

    found = Answers.from_tokenizer(llama(), tokenizer, {True: "yes", False: "no"})
    assert found.tokens == {True: 3, False: 2}
    with pytest.raises(ConfigError, match="'no_no' is 2 tokens"):
        Answers.from_tokenizer(llama(), tokenizer, {True: "yes", False: "no_no"})
    with pytest.raises(ConfigError, match="a token of its own"):
        Answers(llama(), {True: 3, False: 3})


def test_answered_says_which_inputs_the_network_does_right() -> None:
    inputs = model().sample_inputs(40, seed=0)

    def encode(rows: Any) -> Any:
        return LEFT([row(values) for values in rows])

    further = {"encode": encode, "decode": network().decode, "alignment": {"A": Site(layer=0, position=AT_T)}}
    assert all(answered(network(), model(), inputs, **further, batch_size=7))
    never = CausalModel(
        {"V": lambda T, U, K: "20" if T == 3 else "none"}, inputs={name: range(1, 40) for name in "TUK"}
    )
    right = answered(network(), never, inputs, **further)
    assert right == [values["T"] == 3 and model().run(values)["V"] == "20" for values in inputs]


@pytest.mark.parametrize(
    ("position", "encode"),
    [(-3, RIGHT), (AT_T, LEFT), (AT_T, RIGHT), ("p[-3:-2]", LEFT), ("p[-3:-2]", RIGHT)],
    ids=["index right", "column left", "column right", "spec left", "spec right"],
)
def test_positions_and_padding_do_not_change_what_is_learned(position: Any, encode: Any) -> None:
    data = prompts(model(), ["A"], 12, seed=1)
    reference = searching(Site(layer=0, position=-3), {"A": 4})
    search = searching(Site(layer=0, position=position), {"A": 4}, encode)
    expected, found = loss_of(reference, data), loss_of(search, data)
    assert_close(found, expected, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(loss, each.raw)[0] for loss, each in ((expected, reference), (found, search))]
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=0)
    assert gradients[0].abs().max() > 1e-3
    elsewhere = searching(Site(layer=0, position=-2), {"A": 4}, encode)
    assert (loss_of(elsewhere, data) - expected).abs() > 1e-3


def test_a_token_that_is_a_variable_is_found_and_another_is_not() -> None:
    data, held_out = prompts(model(), ["A"], 200, seed=1), prompts(model(), ["A"], 100, seed=2)
    found = {}
    for position in (-3, -2):
        search = searching(Site(layer=0, component="block_input", position=position), {"A": 14})
        search.fit(data, steps=50, learning_rate=0.1, batch_size=40, seed=0)
        found[position] = search.accuracy(held_out, decode=network().decode)
    assert found[-3].value >= 0.9
    assert found[-2].value <= found[-2].chance + 0.1


SITES = {
    "apart": {"A": Site(layer=0, position=-3), "B": Site(layer=2, position=-1)},
    "together": {"A": Site(layer=1, position=-1), "B": Site(layer=1, position=-1)},
}


@pytest.mark.parametrize("place", ["apart", "together"])
def test_rows_that_exchange_different_variables_share_a_batch(place: str) -> None:
    """The loss is the mean over the pairs, each interchanged by itself."""
    search = searching(SITES[place], {"A": 3, "B": 2})
    data = prompts(model(), ["A", "B"], 9, seed=3)
    assert {tuple(item["sources"]) for item in data} == {("A",), ("B",), ("A", "B")}
    each = []
    for item in data:
        sources = {name: RIGHT([source]) for name, source in item["sources"].items()}
        known = {**search.site, **search.alignment}  # type: ignore[dict-item]
        output = interchange(network(), _stripped(RIGHT([item["base"]])), _all_stripped(sources), known)
        each.append(network().loss()(output, [item["label"]]))
    assert_close(loss_of(search, data), torch.stack(each).mean(), atol=1e-5, rtol=0)


def _stripped(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "at"}


def _all_stripped(sources: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {name: _stripped(batch) for name, batch in sources.items()}


def test_sites_that_share_vectors_or_lack_a_variable_are_refused() -> None:
    with pytest.raises(SiteError, match="claim the same coordinates"):
        searching({"A": Site(layer=0, position=-3), "B": Site(layer=0, position=(0, -3))}, {"A": 2, "B": 2})
    with pytest.raises(CausalModelError, match="one for each variable: A, B"):
        searching({"A": Site(layer=0, position=-3)}, {"A": 2, "B": 2})


def test_variables_at_one_site_share_a_rotation_and_others_have_their_own() -> None:
    together, apart = searching(SITES["together"], {"A": 3, "B": 2}), searching(SITES["apart"], {"A": 3, "B": 2})
    assert together.rotation.shape == (5, 16)
    assert together.units() == {"A": range(3), "B": range(3, 5)}
    assert {name: list(matrix.shape) for name, matrix in apart.rotations.items()} == {"A": [3, 16], "B": [2, 16]}
    assert apart.units() == {"A": range(3), "B": range(2)}
    with pytest.raises(CausalModelError, match="at 2 sites"):
        _ = apart.rotation


def own(scores: Tensor, labels: Any) -> Tensor:
    places = torch.tensor([list(network().tokens).index(label) for label in labels])
    return nll_loss(scores.log_softmax(-1), places)


LOSSES = {
    "cross-entropy": lambda: network().loss(),
    "KL": lambda: network().loss(kl=True),
    "own": lambda: own,
    "class_loss": lambda: class_loss(list(network().tokens), logits=lambda scores: scores),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_any_loss_trains(name: str) -> None:
    """Of certain labels all of these are the same number."""
    data = prompts(model(), ["A"], 24, seed=1)
    fits = [
        searching(Site(layer=0, position=-3), {"A": 4}, loss=loss).fit(
            data, steps=3, learning_rate=0.05, batch_size=8, seed=0
        )
        for loss in (LOSSES[name](), LOSSES["cross-entropy"]())
    ]
    assert fits[0] == pytest.approx(fits[1], abs=1e-5)


def arguments(folder: Path, **further: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=0.05,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=0.0,
        seed=7,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        **further,
    )


def test_trainer_and_the_plain_loop_find_the_same(tmp_path: Path) -> None:
    """Over more than one epoch, the last batch of each a short one."""
    data = prompts(model(), ["A", "B"], 20, seed=1)
    plain, trained, start = (searching(SITES["together"], {"A": 3, "B": 2}, RIGHT) for _ in range(3))
    losses = plain.fit(data, steps=7, learning_rate=0.05, batch_size=8, seed=7)
    trainer = transformers.Trainer(
        model=trained,
        args=arguments(tmp_path, max_steps=7, logging_steps=1),
        train_dataset=data,
        eval_dataset=data,
        data_collator=trained.collator,
    )
    trainer.train()
    assert (plain.raw - start.raw).abs().max() > 0.05
    assert_close(trained.raw, plain.raw, atol=1e-5, rtol=0)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss_of(trained, data).detach()), abs=1e-4)
    assert all(parameter.grad is None for parameter in network().parameters())
    assert all(parameter.requires_grad for parameter in network().parameters())


def test_trainer_learns_boundaries_as_the_plain_loop_does(tmp_path: Path) -> None:
    data = prompts(model(), ["A", "B"], 16, seed=1)
    plain, trained = (searching(SITES["together"], ["A", "B"]) for _ in range(2))
    plain.fit(data, steps=4, learning_rate=0.05, batch_size=8, seed=7, temperatures=(3.0, 0.5))
    transformers.Trainer(
        model=trained,
        args=arguments(tmp_path, max_steps=4),
        train_dataset=data,
        data_collator=trained.collator,
        callbacks=[AnnealBoundaries(trained, (3.0, 0.5))],
    ).train()
    assert trained.boundaries is not None
    assert plain.boundaries is not None
    assert_close(trained.boundaries, plain.boundaries, atol=1e-5, rtol=0)
    assert (plain.boundaries - 0.25).abs().min() > 0.02


def test_labels_may_be_distributions(tmp_path: Path) -> None:
    """Under the plain loop and under `Trainer`, which goes through what a batch holds."""
    certain = prompts(model(), ["A"], 16, seed=1)
    unsure = InterchangeDataset(
        {**item, "label": Distribution({item["label"]: 0.7, "27" if item["label"] == "20" else "20": 0.3})}
        for item in certain
    )
    site = Site(layer=0, position=-3)
    plain, trained, sure = (searching(site, {"A": 3}, loss=network().loss(kl=True)) for _ in range(3))
    settings = {"steps": 2, "learning_rate": 0.05, "batch_size": 8, "seed": 7}
    losses = plain.fit(unsure, **settings)
    assert losses != sure.fit(certain, **settings)
    assert min(losses) > 0
    transformers.Trainer(
        model=trained, args=arguments(tmp_path, max_steps=2), train_dataset=unsure, data_collator=trained.collator
    ).train()
    assert_close(trained.raw, plain.raw, atol=1e-5, rtol=0)


def test_a_checkpoint_of_the_trainer_holds_the_rotation_alone(tmp_path: Path) -> None:
    data = prompts(model(), ["A"], 8, seed=1)
    trained, loaded = (searching(Site(layer=0, position=-3), {"A": 3}, seed=seed) for seed in (0, 1))
    trainer = transformers.Trainer(
        model=trained, args=arguments(tmp_path, max_steps=1), train_dataset=data, data_collator=trained.collator
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    transformers.Trainer(model=loaded, args=arguments(tmp_path))._load_from_checkpoint(str(tmp_path / "saved"))
    assert torch.equal(loaded.raw, trained.raw)
    assert set(loaded.state_dict()) == {"places.0.raw"}


def test_tokenised_rows_need_an_example() -> None:
    with pytest.raises(CausalModelError, match=r"example=data\[0\]"):
        AlignmentSearch(network(), model(), SITES["together"]["A"], {"A": 3}, encode=LEFT, loss=own, seed=0)


def test_items_of_another_variable_are_refused() -> None:
    search = searching(Site(layer=0, position=-3), {"A": 3})
    with pytest.raises(CausalModelError, match=r"unknown variables \['B'\]"):
        search.fit(prompts(model(), ["B"], 4, seed=0), steps=1, learning_rate=0.1, batch_size=4, seed=0)
