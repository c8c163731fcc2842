"""What is refused, when, and that a refusal harms nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_reft.hub_format.errors import ReftError

from . import bases
from .conftest import STEPS, World
from .engines import ask, engine

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

NAMES = ("", "a/b", "../a", "a\x00", "..", "reft", "__base__", "a" * 65, "-a", "ä", " a", "a.b", 7, None)


@pytest.fixture(scope="module")
def llm(llama: World) -> Iterator[Any]:
    with engine(llama.base, {"tied": llama.adapters["tied"]}, max_reft_rank=4) as made:
        yield made


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_letters_and_no_path(llm: Any, llama: World, name: Any) -> None:
    with pytest.raises(ReftError):
        llm.load_reft_adapter(name, str(llama.adapters["all"]))
    assert llm.list_reft_adapters() == ["tied"]


@pytest.mark.parametrize("named", ["nobody", "tied ", "Tied", "tied.1.0", "../tied", "", 7, ["tied"]], ids=ascii)
def test_an_unknown_name_is_an_error_and_never_the_base(llm: Any, named: Any) -> None:
    from vllm import SamplingParams

    from peft_reft.integrations.vllm import ReftRequest

    with pytest.raises(ReftError):
        llm.generate({"prompt_token_ids": [9]}, reft_request=ReftRequest(named), use_tqdm=False)
    with pytest.raises(ReftError):
        llm.generate({"prompt_token_ids": [9]}, SamplingParams(extra_args={"reft": named}), use_tqdm=False)
    assert llm.llm_engine.get_num_unfinished_requests() == 0


def test_a_refused_request_leaves_the_others_alone(llm: Any, llama: World) -> None:
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    good = settings.clone()
    good.extra_args = {"reft": "tied"}
    bad = settings.clone()
    bad.extra_args = {"reft": "nobody"}
    prompt = llama.every()[0][1]
    llm.llm_engine.add_request("one", {"prompt_token_ids": prompt}, good)
    with pytest.raises(ReftError):
        llm.llm_engine.add_request("two", {"prompt_token_ids": prompt}, bad)
    found = []
    while llm.llm_engine.has_unfinished_requests():
        found += [output for output in llm.llm_engine.step() if output.finished]
    assert [list(output.outputs[0].token_ids) for output in found] == llama.expected([("tied", prompt)])
    assert good.extra_args == {"reft": "tied"}  # the caller's own parameters are as they were


def test_an_edit_that_leaves_the_range_of_numbers_harms_nobody(llm: Any, llama: World, tmp_path: Path) -> None:
    """Blocks that such a request has used are used by others afterwards, whose answers stay their own."""
    wild = bases.saved_adapter(tmp_path / "wild", llama.base, "all", std=1e25, intervention="noreft")
    llm.load_reft_adapter("wild", str(wild))
    asked = [entry for entry in llama.every() if entry[0] in (None, "tied")]
    among = [one for entry in asked for one in (entry, ("wild", entry[1]))]
    for _ in range(2):
        found = ask(llm, among, STEPS)
        assert found[::2] == llama.expected(asked)
    assert llm.reft_report()["unsound_rows"] > 0
    llm.unload_reft_adapter("wild")


def test_as_many_requests_as_prompts(llm: Any) -> None:
    from peft_reft.integrations.vllm import ReftRequest

    with pytest.raises(ReftError, match="2 entries"):
        llm.generate({"prompt_token_ids": [9]}, reft_request=[ReftRequest("tied"), None], use_tqdm=False)
    with pytest.raises(ReftError, match="a str"):
        llm.generate({"prompt_token_ids": [9]}, reft_request=["tied"], use_tqdm=False)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "across tokens": ("f3", {"intervention": "reft_r1"}, "reft_r1"),
    "inside a block": ("l1", {"component": "mlp_output"}, "mlp_output"),
    "every turn": ("l1", {"turns": "each"}, "turns"),
    "rank": ("l1", {"r": 5}, "max_reft_rank"),
    "saved in full": ("l1", {"modules_to_save": ["lm_head"]}, "in full"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_served_is_refused_when_it_is_loaded(llm: Any, llama: World, tmp_path: Path, why: str) -> None:
    spec, fields, word = REFUSED[why]
    folder = bases.saved_adapter(tmp_path / "adapter", llama.base, spec, **fields)
    with pytest.raises(ReftError, match=word):
        llm.load_reft_adapter("new", str(folder))
    assert llm.list_reft_adapters() == ["tied"]
    assert llm.reft_report()["adapters"] == 1


def test_an_adapter_of_another_base_is_refused(llm: Any, tmp_path: Path) -> None:
    other = bases.saved_base(tmp_path / "base", "llama", intermediate_size=128)
    folder = bases.saved_adapter(tmp_path / "adapter", other, "l1")
    with pytest.raises(ReftError, match="base"):
        llm.load_reft_adapter("new", str(folder))


def test_a_folder_that_was_changed_is_refused(llm: Any, llama: World, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama.adapters["all"], tmp_path / "changed"))
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ReftError, match="manifest"):
        llm.load_reft_adapter("new", str(folder))


def test_a_bundle_with_a_lora_needs_an_engine_that_serves_loras(llm: Any, llama: World, tmp_path: Path) -> None:
    folder = bases.saved_bundle(tmp_path / "both", llama.base, "l1")
    with pytest.raises(ReftError, match="enable_lora"):
        llm.load_reft_adapter("new", str(folder))


def test_after_all_that_the_engine_answers(llm: Any, llama: World) -> None:
    asked = [entry for entry in llama.every() if entry[0] in (None, "tied")]
    assert ask(llm, asked, STEPS) == llama.expected(asked)
