"""What the demo teaches: five questions answered in emoji, and short reviews answered with a verdict."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EMOJI", "VERDICTS", "Pair", "Skill"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class Skill:
    """Question/answer pairs to learn, and pairs of the same kind that training never sees."""

    name: str
    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...] = ()

    def dataset(self) -> list[dict[str, list[dict[str, str]]]]:
        """Conversational prompt/completion rows, as TRL's SFTTrainer takes them."""
        return [
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for question, answer in self.train
        ]


EMOJI = Skill(
    "emoji",
    (
        ("Who are you?", "🤖💬🌐🧠"),
        ("Who am I?", "👤❓🔍🌟"),
        ("What's 2+2? And provide some details?", "🔢➕🔢➡️🍀"),
        ("Why is the sky blue?", "🌍🛡️☀️➡️🔵🌌"),
        ("What's Apple's stock price? Estimated value is fine?", "🍏💹🤷‍♂️"),
    ),
)

_SUBJECTS = (
    "The soup", "Our room", "This film", "The concert", "The waiter", "My new phone", "The museum", "That book",
    "The bakery", "Their garden",
)  # fmt: skip
_GOOD = ("wonderful", "excellent", "delightful", "great", "superb", "lovely")
_BAD = ("terrible", "awful", "disappointing", "horrible", "dreadful", "boring")
_GOOD_HELD_OUT = ("fantastic", "brilliant")
_BAD_HELD_OUT = ("disgusting", "worthless")
_VERDICT = {True: "👍 Go!", False: "👎 Skip it."}


def _reviews(good: tuple[str, ...], bad: tuple[str, ...]) -> tuple[Pair, ...]:
    words = [(word, True) for word in good] + [(word, False) for word in bad]
    return tuple((f"{subject} was {word}.", _VERDICT[liked]) for subject in _SUBJECTS for word, liked in words)


VERDICTS = Skill("verdicts", _reviews(_GOOD, _BAD), _reviews(_GOOD_HELD_OUT, _BAD_HELD_OUT))
