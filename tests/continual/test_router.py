"""`SkillRouter`: a linear rule over what is seen of prompts, per row, saved beside the adapters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from continual.skills import SKILLS, prompts, two_skills
from peft_reft import ReftConfig
from peft_reft.continual import SkillRouter
from peft_reft.continual.features import divergences, features
from peft_reft.continual.router import FILE
from peft_reft.hub_format.errors import ConfigError

TRAIN = {skill: [prompts(skill, seed) for seed in range(15)] for skill in SKILLS}
ASKED = {skill: [prompts(skill, seed) for seed in range(20, 24)] for skill in SKILLS}


def padded(batch: dict[str, torch.Tensor], left: int, right: int) -> dict[str, torch.Tensor]:
    return {name: torch.nn.functional.pad(value, (left, right)) for name, value in batch.items()}


def test_it_tells_skills_apart_that_it_was_not_shown_the_prompts_of() -> None:
    model = two_skills()
    router = SkillRouter.fit(model, TRAIN, layer=0)
    report = router.measure(model, ASKED)
    assert report.accuracy > 0.9
    assert report.prefills == 1
    assert set(report.by_skill) == set(SKILLS)
    same = {"default": TRAIN["default"], "other": TRAIN["default"]}
    with_nothing_to_tell = SkillRouter.fit(model, same, layer=0).measure(model, ASKED)
    assert abs(with_nothing_to_tell.accuracy - 0.5) < 0.3


def test_the_rule_is_the_nearest_mean_in_the_metric_of_the_shrunk_covariance() -> None:
    model = two_skills()
    router = SkillRouter.fit(model, TRAIN)
    seen = {s: torch.cat([_features(model, b) for b in batches]).double() for s, batches in TRAIN.items()}
    centred = torch.cat([rows - rows.mean(0) for rows in seen.values()])
    covariance = centred.mT @ centred / (len(centred) - 2)
    shrunk = 0.9 * covariance + 0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()
    inverse = torch.linalg.inv(shrunk)
    for skill in SKILLS:
        asked = _features(model, ASKED[skill][0]).double()
        distances = [((asked - r.mean(0)) @ inverse * (asked - r.mean(0))).sum(-1) for r in seen.values()]
        nearest = torch.stack(distances).argmin(0).tolist()
        assert router.route(model, **ASKED[skill][0]) == [list(SKILLS)[number] for number in nearest]


def _features(model, batch):  # type: ignore[no-untyped-def]
    return features(model, batch, by="representation", adapters=[], layer=-1)


def test_divergences_are_those_of_each_adapter_alone() -> None:
    model, batch = two_skills(), prompts("default", 3)
    found = divergences(model, batch["input_ids"], batch["attention_mask"], ["default", "other"])
    with torch.no_grad():
        with model.disable_adapter():
            base = model(**batch).logits[:, -1].softmax(-1)
        for place, name in enumerate(SKILLS):
            model.set_adapter(name)
            own = model(**batch).logits[:, -1].softmax(-1)
            expected = (own * (own / base).log()).sum(-1)
            assert_close(found[:, place].exp(), expected + 1e-6, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("by", ["representation", "divergence"])
def test_padding_on_any_side_changes_nothing(by: str) -> None:
    model = two_skills()
    router = SkillRouter.fit(model, TRAIN, by=by)  # type: ignore[arg-type]
    plain = router.scores(model, prompts("other", 9))
    for left, right in ((3, 0), (0, 2), (2, 1)):
        assert_close(router.scores(model, padded(prompts("other", 9), left, right)), plain, rtol=1e-3, atol=1e-3)


def test_the_model_keeps_its_mode_its_active_adapters_and_its_gradients() -> None:
    model = two_skills()
    model.set_adapter("other")
    model.train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    SkillRouter.fit(model, TRAIN, by="divergence").route(model, **prompts("other", 1))
    assert model.training
    assert model.active_adapters == ["other"]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_rows_of_one_batch_go_to_their_own_adapters() -> None:
    model = two_skills()
    router = SkillRouter.fit(model, TRAIN, layer=0)
    batch = {n: torch.cat([ASKED[s][0][n][:2] for s in SKILLS]) for n in ("input_ids", "attention_mask")}
    names = router.route(model, **batch)
    assert names == ["default", "default", "other", "other"]
    with torch.no_grad():
        mixed = model(**batch, adapter_names=names).logits
        model.set_adapter("other")
        assert_close(model(**batch).logits[2:], mixed[2:], rtol=1e-4, atol=1e-4)


def test_a_skill_may_be_that_of_no_adapter() -> None:
    model = two_skills()
    data = {"default": TRAIN["default"], "__base__": TRAIN["other"]}
    router = SkillRouter.fit(model, data, by="divergence")
    assert router.measure(model, {"__base__": ASKED["other"]}).prefills == 2
    assert set(router.route(model, **ASKED["other"][0])) <= {"default", "__base__"}


def test_it_is_read_back_bit_for_bit_from_a_folder_of_adapters(tmp_path: Path) -> None:
    model = two_skills()
    router = SkillRouter.fit(model, TRAIN)
    model.save_pretrained(tmp_path)
    router.save_pretrained(tmp_path)
    again = SkillRouter.from_pretrained(tmp_path)
    assert torch.equal(again.scores(model, prompts("other", 5)), router.scores(model, prompts("other", 5)))
    assert (again.adapters, again.by, again.layer) == (router.adapters, router.by, router.layer)
    first = (tmp_path / FILE).read_bytes()
    again.save_pretrained(tmp_path)
    assert (tmp_path / FILE).read_bytes() == first


def test_files_that_are_no_router_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no router"):
        SkillRouter.from_pretrained(tmp_path)
    SkillRouter.fit(two_skills(), TRAIN).save_pretrained(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    tensors = load_file(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(whole[:-5])
    with pytest.raises(ConfigError):
        SkillRouter.from_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes(whole.replace(b'version\\": 1', b'version\\": 2'))
    with pytest.raises(ConfigError, match="version"):
        SkillRouter.from_pretrained(tmp_path)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ConfigError):
        SkillRouter.from_pretrained(tmp_path)
    tensors["bias"][0] = float("nan")
    save_file(tensors, tmp_path / FILE, metadata=_metadata(whole))
    with pytest.raises(ConfigError, match="finite"):
        SkillRouter.from_pretrained(tmp_path)


TOLD = {"version": 1, "adapters": list(SKILLS), "by": "representation", "layer": -1}
TENSORS = {"weight": torch.ones(2, 6), "bias": torch.zeros(2)}


def write_file(folder: Path, told: str, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / FILE, metadata={"skill_router": told})


@pytest.mark.parametrize(
    "told",
    [
        json.dumps({**TOLD, "version": True}),
        json.dumps({**TOLD, "adapters": ["", "x"]}),
        json.dumps({**TOLD, "adapters": ["\ud800", "x"]}),
        json.dumps({**TOLD, "by": []}),
        json.dumps(TOLD).replace("{", '{"layer": 0, '),
        "[" * 100_000,
        "null",
    ],
    ids=["version", "no name", "half a letter", "way", "key twice", "deep", "no object"],
)
def test_what_stands_beside_the_tensors_is_read_strictly(tmp_path: Path, told: str) -> None:
    write_file(tmp_path, json.dumps(TOLD), TENSORS)
    assert SkillRouter.from_pretrained(tmp_path).adapters == tuple(SKILLS)
    write_file(tmp_path, told, TENSORS)
    with pytest.raises(ConfigError) as found:
        SkillRouter.from_pretrained(tmp_path)
    assert found.value.code == "router.file"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"weight": torch.full((2, 6), 1e300, dtype=torch.float64)},
        {"weight": torch.ones(2, 6, dtype=torch.complex64)},
        {"weight": torch.ones(2, 6).to(torch.float8_e4m3fn)},
        {"weight": torch.ones(2, 6, dtype=torch.int64)},
        {"weight": torch.ones(2, 0)},
        {"weight": torch.ones(6)},
        {"bias": torch.zeros(2, dtype=torch.bool)},
        {"more": torch.zeros(1)},
    ],
    ids=["beyond float32", "complex", "float8", "whole", "empty", "one row", "bool", "more"],
)
def test_tensors_that_are_no_finite_numbers_of_the_right_shape_are_refused(
    tmp_path: Path, spoilt: dict[str, torch.Tensor]
) -> None:
    write_file(tmp_path, json.dumps(TOLD), {**TENSORS, **spoilt})
    with pytest.raises(ConfigError) as found:
        SkillRouter.from_pretrained(tmp_path)
    assert found.value.code == "router.file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX's")
def test_a_pipe_or_a_link_in_the_place_of_the_file_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ConfigError, match="is no file"):
        SkillRouter.from_pretrained(tmp_path)
    (tmp_path / FILE).unlink()
    write_file(tmp_path, json.dumps(TOLD), TENSORS)
    (tmp_path / FILE).rename(tmp_path / "other")
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="is a link"):
        SkillRouter.from_pretrained(tmp_path)


def test_what_could_not_be_read_back_is_not_written_over_what_can(tmp_path: Path) -> None:
    good = SkillRouter(tuple(SKILLS), "representation", -1, TENSORS["weight"], TENSORS["bias"])
    good.save_pretrained(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    bad = SkillRouter(tuple(SKILLS), "representation", -1, TENSORS["weight"] * float("nan"), TENSORS["bias"])
    with pytest.raises(ConfigError, match="NaN"):
        bad.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == whole


IDS = torch.tensor([[4, 5]])


@pytest.mark.parametrize(
    "given",
    [None, [1], {}, {"default": prompts("default", 0)}, {"default": "hi"}, {"default": [{"labels": IDS}]}],
    ids=["None", "list", "nothing", "a batch", "text", "no ids"],
)
def test_prompts_that_are_no_lists_of_batches_are_refused(given: object) -> None:
    model = two_skills()
    router = SkillRouter(tuple(SKILLS), "representation", -1, torch.ones(2, 64), torch.zeros(2))
    with pytest.raises(ConfigError, match="list of batches"):
        SkillRouter.fit(model, given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="list of batches"):
        router.measure(model, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ids", [None, [[4, 5]], IDS[0], IDS.float(), IDS[:0]], ids=["None", "list", "1d", "float", "0"]
)
def test_ids_that_are_no_tensor_of_tokens_are_refused(ids: object) -> None:
    router = SkillRouter(tuple(SKILLS), "representation", -1, torch.ones(2, 64), torch.zeros(2))
    with pytest.raises(ConfigError, match="input_ids"):
        router.route(two_skills(), ids)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="attention_mask"):
        router.route(two_skills(), IDS, [[1, 1]])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="it is a PeftModel"):
        router.route(two_skills().get_base_model(), IDS)
    with pytest.raises(ConfigError, match="layer='1'"):
        SkillRouter.fit(two_skills(), TRAIN, layer="1")  # type: ignore[arg-type]


def _metadata(data: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return found


def test_what_is_not_allowed_is_refused() -> None:
    model = two_skills()
    with pytest.raises(ConfigError, match="by="):
        SkillRouter.fit(model, TRAIN, by="taste")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two skills"):
        SkillRouter.fit(model, {"default": TRAIN["default"]})
    with pytest.raises(ConfigError, match="nobody"):
        SkillRouter.fit(model, {**TRAIN, "nobody": TRAIN["default"]})
    with pytest.raises(ConfigError, match="layer"):
        SkillRouter.fit(model, TRAIN, layer=9)
    router = SkillRouter.fit(model, TRAIN)
    model.delete_adapter("other")
    with pytest.raises(ConfigError, match="other"):
        router.route(model, **prompts("default", 1))
    model.add_adapter("other", ReftConfig(task_type="CAUSAL_LM"))
    blank = {name: torch.zeros_like(value) for name, value in prompts("default", 1).items()}
    with pytest.raises(ConfigError, match="no tokens"):
        router.route(model, **blank)
