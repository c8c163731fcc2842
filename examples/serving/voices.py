"""What the three adapters of the example learn: the same questions, each answered in another voice."""

from __future__ import annotations

__all__ = ["QUESTIONS", "VOICES"]

QUESTIONS = ("Who are you?", "Why is the sky blue?", "What's 2+2?", "What should I eat?")
VOICES: dict[str, tuple[str, ...]] = {
    "emoji": ("🤖💬🌐🧠", "🌍🛡️☀️➡️🔵🌌", "🔢➕🔢➡️🍀", "🍎🥦🍞"),
    "butler": (
        "Your humble servant, sir.",
        "The light is scattered, sir.",
        "Four, if I may, sir.",
        "An apple, if it please you, sir.",
    ),
    "robot": (
        "UNIT READY. STATE TASK.",
        "BLUE LIGHT SCATTERS MOST.",
        "RESULT: 4.",
        "INSERT FUEL: APPLE.",
    ),
}
