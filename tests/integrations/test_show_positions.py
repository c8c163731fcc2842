"""`show_positions`: the tokens that will be edited, marked; from an example before or after it is tokenised."""

from __future__ import annotations

import builtins
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError, ReftError
from peft_reft.integrations import show_positions
from peft_reft.integrations.data import PositionPicture

from .tiny_sft import PAIRS, conversations, pairs, tokenizer, trainer_for

CHAT = [
    {"role": "user", "content": "what is red ?"},
    {"role": "assistant", "content": "rose"},
    {"role": "user", "content": "name one thing"},
    {"role": "assistant", "content": "apple"},
]


def shown(example: Any, positions: str = "f2+l2", *, of: Any = None, **options: Any) -> PositionPicture:
    return show_positions(of or tokenizer(), example, ReftConfig(positions=positions), **options)


def test_in_a_terminal() -> None:
    picture = show_positions(tokenizer(), PAIRS[0], ReftConfig(positions="f2+l1", share_weights=False))
    expected = """\
10 tokens; positions f2+l1 (2 interventions per block)

[1 what] [1 has] the colour red [2 ?] ‖ apple and rose </s>

[1] f2: 0-1
[2] l1: 5
‖ end of the prompt, tokens 0-5"""
    assert str(picture) == expected
    assert repr(picture) == expected  # so that a prompt of Python shows it too


def test_what_it_holds() -> None:
    picture = shown(PAIRS[0])
    assert picture.tokens == ("what", "has", "the", "colour", "red", "?", "apple", "and", "rose", "</s>")
    assert picture.terms == ("f2", "l2")
    assert picture.edited == ((0, 1), (4, 5))
    assert picture.prompts == ((0, 6),)
    assert picture.padding == (0, 0)
    assert picture.note == "positions f2+l2 (one intervention per block)"


def test_it_returns_and_prints_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And needs no rich."""
    real = builtins.__import__

    def without_rich(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.split(".")[0] != "rich"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    str(shown(PAIRS[0]))
    assert capsys.readouterr() == ("", "")


FORMS: dict[str, tuple[Dataset, dict[str, Any]]] = {
    "prompt and completion": (pairs(), {}),
    "conversations": (conversations(), {}),
    "messages": (Dataset.from_list([{"messages": CHAT}, {"messages": CHAT[:2]}]), {"assistant_only_loss": True}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("turns", ["first", "each"])
def test_an_example_is_tokenised_as_the_trainer_does(form: str, turns: str, tmp_path: Path) -> None:
    rows, options = FORMS[form]
    trained = trainer_for(tmp_path, rows, **options).train_dataset
    config = ReftConfig(positions="f2+l2", turns=turns)
    for example, made in zip(rows, trained, strict=True):
        picture = show_positions(tokenizer(), example, config)
        assert list(picture.tokens) == tokenizer().convert_ids_to_tokens(made["input_ids"])
        assert (picture.edited, picture.prompts) == _by_hand(made["labels"], turns)
        tokenised = show_positions(tokenizer(), {name: made[name] for name in ("input_ids", "labels")}, config)
        assert tokenised == picture


def _by_hand(labels: list[int], turns: str) -> tuple[Any, Any]:
    """First two and last two of every run of unsupervised tokens that an answer follows."""
    runs, start = [], 0
    for number, label in enumerate(labels):
        if label != -100:
            if start < number and labels[number - 1] == -100:
                runs.append((start, number))
            start = number + 1
    runs = runs[:1] if turns == "first" else runs
    first = tuple(n for a, b in runs for n in range(a, b)[:2])
    last = tuple(n for a, b in runs for n in range(a, b)[-2:] if n not in first)
    return (first, last), tuple(runs)


def test_every_turn_ends_where_its_answer_starts() -> None:
    picture = show_positions(tokenizer(), {"messages": CHAT}, ReftConfig(positions="l1", turns="each"))
    assert [picture.tokens[position] for position in picture.edited[0]] == ["<|assistant|>"] * 2
    assert str(picture).count("[1 <|assistant|>] ‖") == 2


def test_prompts_without_an_answer_are_prompts() -> None:
    for example in ({"prompt": PAIRS[0]["prompt"]}, {"prompt": CHAT[:1]}, {"messages": CHAT[:1]}):
        picture = shown(example, "l1")
        assert picture.prompts == ((0, len(picture.tokens)),)
        assert picture.edited == ((len(picture.tokens) - 1,),)
    for example in ({"prompt": CHAT[:1]}, {"messages": CHAT[:1]}):
        assert shown(example, "l1").tokens[-1] == "<|assistant|>"
    assert shown({"prompt": "what is red ?"}, "l1", prompt_length=2).edited == ((1,),)
    assert shown(PAIRS[0]["prompt"], "l1", prompt="all").edited == ((5,),)


def test_without_an_end_of_the_prompt_it_raises() -> None:
    plain = tokenizer().apply_chat_template(CHAT, return_dict=True)["input_ids"]
    for example in ("what is red ?", {"text": "what is red ?"}, {"input_ids": plain}):
        with pytest.raises(PromptBoundaryError, match="prompt='all'"):
            shown(example, "l1")
        assert shown(example, "f1").prompts is None
        assert "nothing says where the prompt ends" in str(shown(example, "f1"))
        assert shown(example, "l1", prompt_length=2).edited == ((1,),)
    assert shown({"text": "what is red ?"}, "all").tokens[-1] == "</s>"  # as the trainer ends it
    assert shown("what is red ?", "all").tokens[-1] == "?"


def test_padding_is_counted_out() -> None:
    example = {
        "input_ids": [0, 0, 7, 8, 9, 10, 0],
        "attention_mask": [0, 0, 1, 1, 1, 1, 0],
        "labels": [-100] * 4 + [9, 10, -100],
    }
    picture = shown(example, "f1+l1")
    assert picture.tokens == ("has", "the", "colour", "name")
    assert (picture.edited, picture.prompts, picture.padding) == (((0,), (1,)), ((0, 2),), (2, 1))
    assert "padding not shown: 2 before, 1 after" in str(picture)


def test_stated_positions_are_shown_instead() -> None:
    example = {"input_ids": [0, 7, 8, 9], "attention_mask": [0, 1, 1, 1], "intervention_locations": [[0], [2, 1]]}
    config = ReftConfig(positions="f2+l2", share_weights=False)
    picture = show_positions(tokenizer(), example, config)
    assert picture.edited == ((0,), (1, 2))
    assert picture.terms == ("f2 (intervention_locations)", "l2 (intervention_locations)")
    tied = show_positions(tokenizer(), {**example, "intervention_locations": [[0, 2, -1]]}, ReftConfig())
    assert tied.edited == ((0, 2),)
    for wrong in ([[0], [3]], [[0], [1], [2]], {"default": [[0], [1]]}):
        with pytest.raises(LocationError):
            show_positions(tokenizer(), {**example, "intervention_locations": wrong}, config)


def test_groups_are_told_apart() -> None:
    groups = [{"positions": "f2+l1"}, {"positions": "all-f1"}]
    picture = show_positions(tokenizer(), PAIRS[1], ReftConfig(interventions=groups))
    assert picture.terms == ("group 0, f2", "group 0, l1", "group 1, all-f1")
    assert [picture.marks(position) for position in range(4)] == [[1], [1, 3], [3], [3]]
    assert "[1 name] [1,3 one] [3 thing]" in str(picture)
    assert ">1,3</sup>one<" in picture._repr_html_()


def test_special_tokens_are_found_by_the_tokenizer_given() -> None:
    config = ReftConfig(positions="tok(<|user|>)")
    picture = show_positions(tokenizer(), {"messages": CHAT}, config)
    assert [picture.tokens[position] for position in picture.edited[0]] == ["<|user|>"] * 2
    assert config.special_tokens is None
    with pytest.raises(ConfigError, match="names no special token"):
        shown({"messages": CHAT}, "tok(apple)")


def test_classification_and_encoders_are_all_prompt() -> None:
    for task, labels in (("SEQ_CLS", 1), ("TOKEN_CLS", [1, 2, 1]), ("SEQ_2_SEQ_LM", [5, 6])):
        config = ReftConfig(task_type=task, positions="l1")
        picture = show_positions(tokenizer(), {"input_ids": [7, 8, 9], "labels": labels}, config)
        assert (picture.edited, picture.prompts) == (((2,),), ((0, 3),))
        assert ("encoder" in str(picture)) == (task == "SEQ_2_SEQ_LM")


@pytest.mark.parametrize(
    ("example", "error"),
    [
        (7, ConfigError),
        ({}, ConfigError),
        ({"question": "what"}, ConfigError),
        ({"prompt": "what", "completion": CHAT[1:2]}, ConfigError),
        ({"prompt": "what", "prompt_lengths": 1}, ConfigError),
        ({"text": "what", "intervention_locations": [[0]]}, ConfigError),
        ({"input_ids": [[7, 8]]}, LocationError),
        ({"input_ids": []}, LocationError),
        ("", LocationError),
    ],
)
def test_other_examples_are_refused(example: Any, error: type[ReftError]) -> None:
    with pytest.raises(error, match="Rule"):
        shown(example, "f1")


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigError, match="prompt='most'"):
        shown({"prompt": "what"}, prompt="most")
    with pytest.raises(LocationError, match="one of them"):
        shown("what is", prompt="all", prompt_length=1)
    with pytest.raises(LocationError, match="prompt_lengths"):
        shown("what is", prompt_length=3)


def test_a_config_is_needed() -> None:
    with pytest.raises(ConfigError, match="it is a ReftConfig"):
        show_positions(tokenizer(), "what", "f1")  # type: ignore[arg-type]


HOSTILE = [
    "<script>alert(1)</script>",
    "</span><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onclick='alert(1)",
    "&lt;b&gt;",
    "\x1b[31mred\x1b[0m",
    "a\nb\rc\td",
    "\u202eesrever",
    "\x00\x07\x9b",
    "[9",
    "]",
    "‖",
    "[1 fake]",
]


IMAGE = """<img src="x" onerror='alert'>"""


def hostile_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({token: number for number, token in enumerate([*HOSTILE, "<unk>"])}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", extra_special_tokens=[IMAGE])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_tokens_stay_text_in_html() -> None:
    example = {"input_ids": list(range(len(HOSTILE)))}
    reader = _Reader()
    reader.feed(shown(example, "f8+generated", of=hostile_tokenizer(), prompt="all")._repr_html_())
    assert {tag for tag, _ in reader.tags} == {"div", "span", "sup", "ul", "li", "b"}
    assert {name for _, attributes in reader.tags for name in attributes} == {"style", "title"}
    for token in HOSTILE[:5]:
        assert token.replace(" ", "·") in reader.text
    assert not any(sign in reader.text for sign in "\x00\x07\x1b\x9b\n\r\t\u202e")


def test_a_hostile_term_stays_text_in_html() -> None:
    picture = show_positions(hostile_tokenizer(), {"input_ids": [4]}, ReftConfig(positions=f"tok({IMAGE})"))
    reader = _Reader()
    reader.feed(picture._repr_html_())
    assert reader.text.count(f"tok({IMAGE})") == 2  # in the title and in the legend
    assert {tag for tag, _ in reader.tags} == {"div", "span", "sup", "ul", "li"}
    assert {name for _, attributes in reader.tags for name in attributes} == {"style", "title"}
    assert f"tok({IMAGE})" in {attributes.get("title") for _, attributes in reader.tags}


def test_hostile_tokens_neither_steer_a_terminal_nor_look_like_marks() -> None:
    text = str(shown({"input_ids": list(range(len(HOSTILE)))}, "f1", of=hostile_tokenizer(), prompt="all"))
    assert all(letter == "\n" or letter.isprintable() for letter in text)
    body = "".join(text.split("\n\n")[1])
    assert r"\x1b\[31mred\x1b\[0m" in body
    assert r"a\nb\rc\td" in body
    assert r"\u202eesrever" in body
    assert r"\[1·fake\]" in body
    unescaped = body.replace(r"\[", "").replace(r"\]", "").replace(r"\‖", "")
    assert (unescaped.count("["), unescaped.count("]"), unescaped.count("‖")) == (1, 1, 1)


def test_terms_differ_without_colour_in_html() -> None:
    page = shown(PAIRS[0])._repr_html_()
    assert "<sup>1</sup>what" in page
    assert "<sup>2</sup>?" in page
    assert 'title="position 5: l2"' in page
    assert 'title="the prompt ends here"' in page
    assert "solid" in page.split("<sup>1</sup>what")[0].split("<span")[-1]
    assert "dashed" in page.split("<sup>2</sup>?")[0].split("<span")[-1]


def test_a_part_of_a_letter_is_shown_as_the_vocabulary_has_it() -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(letters))}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    picture = shown("a 🤖", "f1", of=PreTrainedTokenizerFast(tokenizer_object=raw))
    assert picture.tokens[:2] == ("a", " ")
    assert len(picture.tokens) == 6
    assert not any("\ufffd" in token for token in picture.tokens)
    assert str(picture).split("\n")[2].startswith("[1 a] · ")


def test_long_examples_are_wrapped() -> None:
    lines = str(shown({"input_ids": [7, 8, 9, 10] * 100, "prompt_lengths": 400}, "l1")).split("\n")
    assert max(map(len, lines)) <= 100
    assert len(lines) > 10
