"""The site's own parts: links, charts, notebooks, the reference's names, and the check of what was built."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tools.site.check import problems
from tools.site.flowchart import as_html
from tools.site.markdown import LinkError, rewritten
from tools.site.notebooks import as_markdown
from tools.site.pages import REFERENCE, home_of, site_pages
from tools.site.reference import entries, kinds, page
from tools.site.stage import stage, with_fences

ROOT = Path(__file__).parents[2]
CODE = "`[a](nowhere.md)`\n\n```text\n[a](nowhere.md)\n```\n"
HOMES = {"docs/a.md": "a.md", "docs/deep/b.md": "deep/b.md", "hub_format/SPEC.md": "format.md"}


def on_site(text: str, source: str = "docs/deep/b.md") -> str:
    def bring(file: str) -> str:
        if file != "docs/deep/figure.svg":
            raise LinkError(file)
        return "deep/figure.svg"

    return rewritten(text, source=source, target=HOMES[source], homes=HOMES, bring=bring)


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("[a](../a.md#head)", "[a](../a.md#head)"),
        ("[`SPEC`](../../hub_format/SPEC.md)", "[`SPEC`](../format.md)"),
        ("![what](figure.svg)", "![what](figure.svg)"),
        ("[here](#there), [out](https://example.org/a.md)", "[here](#there), [out](https://example.org/a.md)"),
        (
            "`[a](nowhere.md)`\n\n```text\n[a](nowhere.md)\n```\n",
            "`[a](nowhere.md)`\n\n```text\n[a](nowhere.md)\n```\n",
        ),
    ],
)
def test_links_lead_from_page_to_page_on_the_site_and_code_is_left_alone(written: str, made: str) -> None:
    assert on_site(written) == made


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(LinkError, match=r"docs/deep/nowhere\.md"):
        on_site("[a](nowhere.md)")


def test_a_chart_becomes_rows_each_below_what_points_to_it() -> None:
    drawn = as_html('flowchart TD\n  a["one<br/>more"] --> b & c --> d["<last>"]\n  a --> d')
    rows = drawn.split('<div class="flow-row">')[1:]
    assert [row.count("<b>") for row in rows] == [1, 2, 1]
    assert "<b>one</b><br>more" in rows[0]
    assert "&lt;last&gt;" in rows[2]


@pytest.mark.parametrize("chart", ["graph TD\n  a --> b", "flowchart TD\n  a -.-> b", "flowchart TD\n  a --> b --> a"])
def test_a_chart_that_cannot_be_drawn_is_an_error(chart: str) -> None:
    with pytest.raises(ValueError, match=r"flowchart|draws|circle"):
        as_html(chart)


def test_every_chart_of_the_pages_is_drawn() -> None:
    homes = {page.source: page.target for _, found in site_pages(ROOT) for page in found}
    assert 'class="flow"' in rewritten(
        (ROOT / "docs/architecture.md").read_text("utf-8"),
        source="docs/architecture.md",
        target="architecture.md",
        homes=homes | {"README.md": "index.md"},
        bring=home_of,
    )


def test_a_notebook_is_its_text_its_code_and_what_came_of_it() -> None:
    output = [
        {"output_type": "stream", "text": ["printed\n"]},
        {"output_type": "execute_result", "data": {"text/plain": ["x"], "text/html": ["<b>\n\n", "rich</b>"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A lesson\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": output},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    made = as_markdown(json.dumps({"cells": cells}))
    assert made == (
        "# A lesson\ntext\n\n```python\n1 + 1\n```\n\n```text\nprinted\n```\n\n"
        '<div class="output">\n<b>\nrich</b>\n</div>\n'
    )


def test_examples_in_docstrings_come_into_fences() -> None:
    source = 'def f():\n    """Text.\n\n    >>> f()\n    1\n\n    >>> f()\n    2\n    """\n'
    assert with_fences(source).count("```pycon") == 2
    compile(with_fences(source), "f", "exec")


def test_the_reference_has_every_public_name_once() -> None:
    pytest.importorskip("trl")
    for one in REFERENCE:
        names = [name for _, group in entries(ROOT, one.source) for name in group]
        assert len(set(names)) == len(names)
        module = importlib.import_module(one.source)
        listed = {f"{one.source}.{name}" for name in module.__all__ if not hasattr(getattr(module, name), "__path__")}
        modules = {name for name in listed if Path(ROOT, name.replace(".", "/") + ".py").is_file()}
        assert listed - modules <= set(names)
        assert all(f"::: {name}\n" in page(ROOT, one.source) for name in names)


def test_the_reference_has_every_kind() -> None:
    from peft_reft.hub_format.kinds import kind_signature, known_kinds
    from peft_reft.interventions import intervention_class

    ours = [name for name in known_kinds() if kind_signature(name).module.startswith("peft_reft.")]
    classes = {name: intervention_class(name) for name in ours}
    assert {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in classes.items()} == kinds(ROOT)


def test_every_page_of_docs_is_in_the_navigation() -> None:
    shown = {page.source for _, found in site_pages(ROOT) for page in found}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} <= shown


def test_staging_finds_every_link_and_writes_the_navigation(tmp_path: Path) -> None:
    stage(ROOT, tmp_path / "site")
    assert (tmp_path / "site/pages/causal/equality.svg").is_file()
    assert "@NAV@" not in (tmp_path / "site/zensical.toml").read_text("utf-8")
    assert (tmp_path / "site/sources/peft_reft/hub_format/schema.json").is_file()


def html(body: str) -> str:
    return f"<html><body><article>{body}</article></body></html>"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b/">b</a><a href="b/#two">two</a><a href="https://example.org/">out</a>', None),
        ('<a href="c/">c</a>', "no such page"),
        ('<a href="b/#three">three</a>', "no such heading"),
        ('<script src="https://example.org/x.js"></script>', "another host"),
        ('<img src="figure.svg">', "no such file"),
        ("<p>one:\n- two</p>", "not understood"),
        ("<pre>one:\n- two [a](b)</pre>", None),
    ],
)
def test_the_check_sees_what_is_wrong_with_a_page(tmp_path: Path, body: str, fault: str | None) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/index.html").write_text(html('<h1 id="two">b</h1>'), "utf-8")
    (tmp_path / "index.html").write_text(html(body), "utf-8")
    found = problems(tmp_path, [])
    assert (found == []) if fault is None else fault in found[0]


def test_the_check_misses_a_name_that_has_no_entry(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(html('<h2 id="peft_reft.there">there</h2>'), "utf-8")
    assert problems(tmp_path, ["peft_reft.there", "peft_reft.gone"]) == [
        "the reference has no entry for peft_reft.gone"
    ]
