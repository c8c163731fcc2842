"""`python -m examples.serving.ask URL BASE`: two adapters and the base in one go, then a third that is loaded."""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from .voices import QUESTIONS


def main(url: str, base: str) -> None:
    """Ask, load the third from the Hub, ask again, and show the answers side by side."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    said = _answers(client, [base, "emoji", "butler"])
    body = json.dumps({"reft_name": "robot", "reft_path": "me/robot"}).encode()
    request = urllib.request.Request(f"{url}/v1/load_reft_adapter", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer))
    said |= _answers(client, ["robot"])
    table = Table(title="One base, one server", show_lines=True)
    for column in ("question", "base", *list(said)[1:]):
        table.add_column(column, overflow="fold")
    for number, question in enumerate(QUESTIONS):
        table.add_row(question, *(answers[number] for answers in said.values()))
    Console(width=118).print(table)


def _answers(client: OpenAI, models: list[str]) -> dict[str, list[str]]:
    """Model → its answers; all requests are on their way at once."""
    with ThreadPoolExecutor(len(models) * len(QUESTIONS)) as pool:
        asked = {model: [pool.submit(_answer, client, model, question) for question in QUESTIONS] for model in models}
        return {model: [answer.result() for answer in answers] for model, answers in asked.items()}


def _answer(client: OpenAI, model: str, question: str) -> str:
    said = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
    )
    return (said.choices[0].message.content or "").strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
