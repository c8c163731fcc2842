"""lm-evaluation-harness, the real package, offline: a ReFT scores as in a plain loop over single requests."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from contract import tiny
from peft_reft import MixedReftModel, PositionWarning
from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError, ReftError
from tools.site.blocks import command

from .tiny_harness import CHOICES, DOCS, LONGER, Slow, encoded, saved_base, trained, write_tasks
from .tiny_sft import base_model, reft, tokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'peft-reft[evals]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from peft_reft.integrations.lm_eval import ReftLM

Answers = list[tuple[float, bool]]


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def pairs() -> list[tuple[str, str]]:
    """Contexts and continuations of every length, two of them with the same tokens and another end of the context."""
    questions = [doc["question"] for doc in DOCS]
    crossed = [(question, f" {choice}") for question in questions for choice in (*CHOICES[:2], *LONGER)]
    return [
        *crossed,
        ("the colour of", " milk white"),
        ("the colour of milk", " white"),
        ("the colour", " of milk red"),
    ]


@pytest.fixture(scope="module")
def adapted() -> Any:
    return trained()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, adapted: Any) -> tuple[Path, Path, Path]:
    """Base, adapter, tasks."""
    root = tmp_path_factory.mktemp("harness")
    adapted.save_pretrained(root / "reft")
    return saved_base(root / "base"), root / "reft", write_tasks(root / "tasks")


def slow(model: Any, *, base: Any = None, first: int = 2, last: int = 2) -> Slow:
    return Slow(base_model() if base is None else base, get_peft_model_state_dict(model), first=first, last=last)


def check(found: Answers, wanted: Answers) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    torch.testing.assert_close(
        torch.tensor([score for score, _ in found]), torch.tensor([score for score, _ in wanted]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("batch_size", "logits_cache"), [(1, True), (5, True), (5, False), ("auto", True)])
def test_log_likelihoods(adapted: Any, batch_size: Any, logits_cache: bool) -> None:
    """Batches of mixed lengths; requests of equal tokens are told apart by where their contexts end."""
    model = ReftLM(
        adapted,
        tokenizer=tokenizer(),
        batch_size=batch_size,
        max_batch_size=8,
        max_length=32,
        logits_cache=logits_cache,
    )
    reference = slow(adapted)
    wanted = [reference.score(encoded(context), encoded(answer)) for context, answer in pairs()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PositionWarning)
        check(model.loglikelihood(instances("loglikelihood", *pairs())), wanted)
    assert len({round(score, 3) for score, _ in wanted}) > len(wanted) // 2


def test_a_context_that_is_cut_keeps_its_end(adapted: Any) -> None:
    """The first tokens of what is left are edited, and the last ones."""
    model = ReftLM(adapted, tokenizer=tokenizer(), batch_size=4, max_length=6)
    context, answer = "tell me the colour of the sky please ?", " a red apple"
    kept = (encoded(context) + encoded(answer))[-7:-3]
    check(
        model.loglikelihood(instances("loglikelihood", (context, answer), ("the sky", " blue"))),
        [slow(adapted).score(kept, encoded(answer)), slow(adapted).score(encoded("the sky"), encoded("blue"))],
    )


def test_an_empty_context_is_the_prefix_token(adapted: Any) -> None:
    model = ReftLM(adapted, tokenizer=tokenizer())
    wanted = slow(adapted).score([tokenizer().eos_token_id], encoded("red apple"))
    check(model.loglikelihood(instances("loglikelihood", ("", "red apple"))), [wanted])


def test_generation(adapted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left-padded contexts of different lengths. The tiny tokenizer has words for some ids only: ids are compared."""
    model = ReftLM(adapted, tokenizer=tokenizer(), batch_size=3)
    monkeypatch.setattr(model, "tok_decode", _spelled)
    asked = [(doc["question"], {"until": [], "max_gen_toks": 3}) for doc in DOCS]
    wanted = [slow(adapted).generate(encoded(question), 3) for question, _ in asked]
    found = model.generate_until(instances("generate_until", *asked))
    assert found == [_spelled(ids).partition(_spelled(tokenizer().eos_token_id))[0] for ids in wanted]
    assert any(len(text) > 4 for text in found)


def _spelled(ids: Any, skip_special_tokens: bool = True) -> str:
    return "".join(f"<{number}>" for number in (ids if isinstance(ids, list) else [ids]))


def test_whole_texts_have_no_prompt(adapted: Any) -> None:
    text = ("tell me the colour of the sky please ?",)
    with pytest.raises(PromptBoundaryError, match=r"'f2\+l2'.*loglikelihood_rolling"):
        ReftLM(adapted, tokenizer=tokenizer()).loglikelihood_rolling(instances("loglikelihood_rolling", text))
    everywhere = trained(positions="all")
    model = ReftLM(everywhere, tokenizer=tokenizer(), batch_size=2, max_length=4)
    found = model.loglikelihood_rolling(instances("loglikelihood_rolling", text, ("the red apple",)))
    reference, ids, wanted = slow(everywhere, first=99), encoded(text[0]), []
    windows = [([1], ids[:4]), (ids[3:4], ids[4:8]), (ids[4:8], ids[8:])]
    for context, rest in windows:
        wanted.append(_Everywhere(reference).score(context, rest)[0])
    short = _Everywhere(reference).score([1], encoded("the red apple"))[0]
    torch.testing.assert_close(torch.tensor(found), torch.tensor([sum(wanted), short]), rtol=0, atol=1e-5)


class _Everywhere(Slow):
    """Of an adapter that edits all tokens."""

    def __init__(self, other: Slow) -> None:
        super().__init__(other.base, other.adapter, first=0, last=0)

    def _edited(self, prompt: int) -> list[int]:
        return list(range(self.length))

    def score(self, context: Any, continuation: Any) -> tuple[float, bool]:
        self.length = len(context) + len(continuation)
        return super().score(context, continuation)


def test_a_bundle_has_both_parts(tmp_path: Path) -> None:
    """The LoRA's part is merged into the reference's weights, the ReFT's is hooked on."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    mixed = MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft()})
    mixed.save_pretrained(tmp_path / "both")
    saved_base(tmp_path / "base")
    model = ReftLM(str(tmp_path / "base"), reft=str(tmp_path / "both"), device="cpu", batch_size=4)
    merged = PeftModel.from_pretrained(base_model(), tmp_path / "both").merge_and_unload()
    reference = Slow(
        merged, load_file(tmp_path / "both" / "reft" / "edit" / "adapter_model.safetensors"), first=2, last=2
    )
    wanted = [reference.score(encoded(context), encoded(answer)) for context, answer in pairs()]
    check(model.loglikelihood(instances("loglikelihood", *pairs())), wanted)
    alone = ReftLM(str(tmp_path / "base"), reft=str(tmp_path / "both"), adapter="edit", device="cpu", batch_size=4)
    reference.base = base_model().eval()
    wanted = [reference.score(encoded(context), encoded(answer)) for context, answer in pairs()]
    check(alone.loglikelihood(instances("loglikelihood", *pairs())), wanted)


def test_several_adapters_of_a_folder(tmp_path: Path) -> None:
    model = get_peft_model(base_model(), reft())
    model.add_adapter("other", reft(positions="l1"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="adapter="):
        ReftLM(base_model(), reft=str(tmp_path), tokenizer=tokenizer())
    with pytest.raises(ConfigError, match=r"'third'.*default, other"):
        ReftLM(base_model(), reft=str(tmp_path), adapter="third", tokenizer=tokenizer())
    chosen = ReftLM(base_model(), reft=str(tmp_path), adapter="other", tokenizer=tokenizer())
    assert chosen.get_model_info()["reft_positions"] == {"other": ["l1"]}
    both = ReftLM(base_model(), reft=str(tmp_path), adapter="default+other", tokenizer=tokenizer())
    assert set(both.get_model_info()["reft_positions"]) == {"default", "other"}


def test_what_cannot_be_evaluated_is_refused(adapted: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ReFT adapter"):
        ReftLM(base_model(), tokenizer=tokenizer())
    with pytest.raises(ConfigError, match="bundle"):
        ReftLM(base_model(), reft=str(tmp_path), peft="me/lora", tokenizer=tokenizer())
    turns = get_peft_model(base_model(), reft(turns="each")).eval()
    model = ReftLM(turns, tokenizer=tokenizer())
    with pytest.raises(PromptBoundaryError, match="turns"):
        model.loglikelihood(instances("loglikelihood", ("the sky", " blue")))
    with pytest.raises(ReftError):
        ReftLM(base_model(), reft=str(tmp_path / "nowhere" / "at" / "all"), tokenizer=tokenizer())


def test_a_t5(tmp_path: Path) -> None:
    """An encoder-decoder's context is the encoder's input."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(
            tiny.base_model("t5"), reft(task_type="SEQ_2_SEQ_LM", layers_pattern="encoder.block")
        ).eval()
    harness = ReftLM(model, tokenizer=tokenizer(), batch_size=4, max_length=32, backend="seq2seq")
    found = harness.loglikelihood(instances("loglikelihood", *pairs()[:9]))
    for (score, _), (context, answer) in zip(found, pairs()[:9], strict=True):
        ids, labels = torch.tensor([encoded(context)]), torch.tensor([encoded(answer)])
        places = torch.tensor([[sorted({0, 1, ids.shape[1] - 2, ids.shape[1] - 1})]])
        logits = model(input_ids=ids, labels=labels, intervention_locations=places).logits[0].log_softmax(-1)
        assert abs(score - float(logits.gather(1, labels.mT).sum())) < 1e-5


def accuracy(reference: Slow) -> float:
    right = 0
    for doc in DOCS:
        scores = [reference.score(encoded(doc["question"]), encoded(choice))[0] for choice in CHOICES]
        right += scores.index(max(scores)) == doc["answer"]
    return right / len(DOCS)


def test_accuracy_of_the_bare_base_and_of_a_class_that_is_told_nothing(
    folders: tuple[Path, Path, Path], adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness's own class scores another model than the one that was trained, and our warning says so."""
    base, adapter, tasks = folders
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))

    def evaluated(model: str, **given: str) -> float:
        arguments = {"pretrained": str(base), **given}
        results = simple_evaluate(
            model,
            arguments,
            ["colours"],
            device="cpu",
            batch_size=3,
            task_manager=TaskManager(include_path=str(tasks)),
        )
        accuracy: float = results["results"]["colours"]["acc,none"]
        return accuracy

    with warnings.catch_warnings():
        warnings.simplefilter("error", PositionWarning)
        assert evaluated("peft-reft", reft=str(adapter)) == accuracy(slow(adapted)) == 1.0
        assert evaluated("hf") == accuracy(slow(adapted, first=0, last=0)) < 1.0
    with pytest.warns(PositionWarning, match="--model peft-reft"):
        evaluated("hf", peft=str(adapter))


def test_the_command_line_of_the_page(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """`python -m peft_reft -m lm_eval …`, as its user types it, on folders of the page's names and tasks of ours."""
    (tmp_path / "me").mkdir()
    for name, folder in zip(("base", "my-reft"), folders, strict=False):
        (tmp_path / "me" / name).symlink_to(folder)
    line = command("docs/evaluating.md", "python -m peft_reft -m lm_eval")
    words = shlex.split(line.replace("arc_easy", "colours,colours_said"))[1:]
    more = ["--include_path", str(folders[2]), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *words, *more],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PositionWarning" not in done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text("utf-8"))
    assert results["results"]["colours"]["acc,none"] == 1.0
    assert "exact_match,none" in results["results"]["colours_said"]
    assert results["config"]["reft_positions"] == {"default": ["f2+l2"]}


def test_what_the_stubs_declare_of_the_harness_is_there() -> None:
    """`tools/stubs` stands in for it where types are checked without it."""
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    assert isinstance(HFLM, type)
    assert callable(register_model("a-name-that-nobody-has"))
