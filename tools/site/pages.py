"""Which pages the site has, in the order in which a newcomer reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NAV", "REFERENCE", "Page", "Section", "home_of", "site_pages"]


@dataclass(frozen=True)
class Page:
    """One page.

    Args:
        source: its file in the repository, or the public package whose reference it is.
        target: its file on the site.
        title: what the navigation calls it.
    """

    source: str
    target: str
    title: str


@dataclass(frozen=True)
class Section:
    """A heading of the navigation.

    Args:
        title: the heading.
        pages: below it, in order.
        folder: a folder whose further `*.md` and `*.ipynb` come after them, by name; its `README.md` comes first.
    """

    title: str
    pages: tuple[Page, ...] = ()
    folder: str | None = None


REFERENCE = (
    Page("peft_reft", "reference/peft_reft.md", "peft_reft"),
    Page("peft_reft.interventions", "reference/interventions.md", "peft_reft.interventions"),
    Page("peft_reft.integrations", "reference/integrations.md", "peft_reft.integrations"),
    Page("peft_reft.causal", "reference/causal.md", "peft_reft.causal"),
    Page("peft_reft.continual", "reference/continual.md", "peft_reft.continual"),
    Page("peft_reft.hub_format", "reference/hub_format.md", "peft_reft.hub_format"),
)
NAV = (
    Section("Start", (
        Page("docs/index.md", "index.md", "What it is"),
        Page("docs/install.md", "install.md", "Install"),
        Page("docs/first_adapter.md", "first_adapter.md", "The first adapter"),
        Page("docs/coming_from_pyreft.md", "coming_from_pyreft.md", "From pyreft or adapters"),
    )),
    Section("Lessons", folder="examples/notebooks"),
    Section("Positions", (Page("docs/positions.md", "positions.md", "Which tokens are edited"),)),
    Section("Training", (
        Page("docs/trl.md", "trl.md", "TRL and transformers"),
        Page("docs/parameters.md", "parameters.md", "Every parameter"),
        Page("docs/adapters.md", "adapters.md", "Several adapters"),
        Page("docs/continual.md", "continual.md", "Skills one after another"),
        Page("docs/study.md", "study.md", "Which method forgets least"),
        Page("docs/embeddings.md", "embeddings.md", "Embeddings"),
        Page("examples/distributed/README.md", "distributed.md", "Several processes, nodes"),
        Page("docs/evaluating.md", "evaluating.md", "Evaluating"),
    )),
    Section("Recipes", folder="docs/recipes"),
    Section("Sharing", (
        Page("docs/hub.md", "hub.md", "Adapters on the Hub"),
        Page("docs/cli.md", "cli.md", "The command line"),
        Page("hub_format/SPEC.md", "format.md", "The file format"),
    )),
    Section("Serving", (
        Page("docs/serving.md", "serving.md", "Generating and serving"),
        Page("docs/compiling.md", "compiling.md", "Compiling, hot-swap, export"),
    )),
    Section("Causal toolkit", (Page("docs/causal.md", "causal.md", "Where ReFT comes from"),)),
    Section("Reference", (
        *REFERENCE,
        Page("docs/compatibility.md", "compatibility.md", "What works with what"),
        Page("docs/architectures.md", "architectures.md", "Model classes"),
        Page("docs/prefixes.md", "prefixes.md", "Prefixes that stand for edits"),
        Page("docs/architecture.md", "architecture.md", "How the code is built"),
    )),
    Section("Measured", (
        Page("benchmarks/README.md", "benchmarks.md", "What is measured"),
        Page("benchmarks/method_comparison/README.md", "metamathqa.md", "PEFT's MetaMathQA board"),
    ), "benchmarks/results"),
    Section("Project", (
        Page("CHANGELOG.md", "changelog.md", "Changes"),
        Page("CONTRIBUTING.md", "contributing.md", "Contributing"),
        Page("SECURITY.md", "security.md", "Security"),
    )),
)  # fmt: skip


def site_pages(root: Path) -> list[tuple[str, list[Page]]]:
    """The navigation with what lies in its folders.

    Args:
        root: the repository.

    Returns:
        Headings with their pages, in order; headings without a page are left out.
    """
    listed = {page.source for section in NAV for page in section.pages}
    found = []
    for section in NAV:
        pages = list(section.pages)
        if section.folder is not None:
            files = [path for end in ("md", "ipynb") for path in (root / section.folder).glob(f"*.{end}")]
            for path in sorted(files, key=lambda path: (path.stem not in ("README", "index"), path.name)):
                source = path.relative_to(root).as_posix()
                if source not in listed:
                    pages.append(Page(source, home_of(source), heading(path)))
        if pages:
            found.append((section.title, pages))
    return found


def home_of(source: str) -> str:
    """Where the site has a file that a folder of the navigation holds, or that a page shows.

    Args:
        source: the file, from the repository's root.

    Returns:
        The file on the site.
    """
    path = Path(source.removeprefix("docs/").removeprefix("examples/"))
    if path.name == "README.md":
        return path.with_name("index.md").as_posix()
    return (path.with_suffix(".md") if path.suffix == ".ipynb" else path).as_posix()


def heading(path: Path) -> str:
    """The first heading of a Markdown file or a notebook, without marks of code and without a digest."""
    from .notebooks import as_markdown

    text = path.read_text("utf-8")
    lines = (as_markdown(text) if path.suffix == ".ipynb" else text).splitlines()
    found = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.stem)
    return re.sub(r" \([0-9a-f]{8,}\)$", "", found.replace("`", ""))
