"""How large edits are, told from their tensors: against whole matrices, and against what an edit does to vectors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from contract.tiny import HIDDEN, base_model
from peft_reft import ReftConfig
from peft_reft.hub_format.listing import check_member, list_members
from peft_reft.integrations.cli import main
from peft_reft.integrations.cli.sizes import EditSize, edit_sizes
from peft_reft.interventions import orthonormal_rows

from .conftest import Command

VECTORS = Path(__file__).parents[1] / "data" / "vectors" / "good"


def saved(folder: Path, **fields: object) -> PeftModel:
    """An adapter with random tensors, written into a folder."""
    torch.manual_seed(0)
    config = ReftConfig(**{"task_type": "CAUSAL_LM", "r": 3, "positions": "f1+l2", "init_weights": False, **fields})
    model = get_peft_model(base_model("llama"), config)
    model.save_pretrained(folder)
    return model


def sizes(folder: Path) -> list[EditSize]:
    (member,) = list_members(folder)
    return edit_sizes(folder, check_member(folder, member))


def test_of_loreft_it_is_the_norm_of_its_whole_matrix_and_vector(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", share_weights=False)
    found = sizes(tmp_path / "a")
    assert [(size.site, size.layer, size.term) for size in found] == [
        (f"model.layers.{layer}", layer, term) for layer in range(3) for term in ("f1", "l2")
    ]
    for size in found:
        unit = model.base_model.model.model.layers[size.layer].reft
        edit = getattr(unit, f"reft_{('f1', 'l2').index(size.term)}")["default"]
        rows = orthonormal_rows(edit.rotation)
        matrix, vector = rows.T @ edit.weight - rows.T @ rows, rows.T @ edit.bias
        assert size.dependent == pytest.approx(float(torch.linalg.matrix_norm(matrix)), rel=1e-4)
        assert size.constant == pytest.approx(float(vector.norm()), rel=1e-4)
        assert size.largest == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-4)
        assert size.size**2 == pytest.approx(size.dependent**2 + size.constant**2)
        assert size.hidden == HIDDEN


@pytest.mark.parametrize("kind", ["loreft", "noreft", "direft", "consreft", "lobireft", "bias", "red"])
def test_it_is_how_far_an_edit_moves_standard_normal_vectors_on_average(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "a", intervention=kind, layers_to_transform=[1])
    (size,) = sizes(tmp_path / "a")
    edit = model.base_model.model.model.layers[1].reft.reft_0["default"].eval()
    hidden = torch.randn(20_000, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = float(edit(hidden).pow(2).sum(-1).mean().sqrt())
    assert size.size == pytest.approx(moved, rel=0.05)


def test_an_edit_that_is_the_identity_has_no_size(tmp_path: Path) -> None:
    saved(tmp_path / "a", init_weights=None)
    assert all(size.size < 1e-5 for size in sizes(tmp_path / "a"))


@pytest.mark.parametrize("folder", sorted(VECTORS.glob("*")), ids=lambda folder: folder.name)
def test_every_kind_and_layout_of_the_format_has_one(folder: Path) -> None:
    members = list_members(folder)
    edits = [member for member in members if member.kind == "reft"]
    assert edits
    for member in edits:
        checked = check_member(folder, member)
        found = edit_sizes(folder, checked)
        assert {size.site for size in found} == {
            name.partition(".reft.")[0].removeprefix("base_model.model.")
            for name in checked.tensors
            if ".reft.reft_" in name
        }
        assert all(size.size > 0 for size in found)


def test_the_screen_shows_bars_and_says_what_they_are(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folders / "both"), "--figure"]) == 0
    screen = capsys.readouterr().out
    assert screen.count("█" * 10) >= 1
    assert "edit: how large its edits are" in screen
    assert "Frobenius" in screen
    assert "default: how large" not in screen  # the LoRA


@pytest.mark.parametrize(("columns", "letters"), [(60, 4), (80, 17), (200, 20)])
def test_a_bar_stands_on_one_line_on_every_screen(
    columns: int, letters: int, folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["inspect", str(folders / "reft"), "--figure"]) == 0
    drawn = [line for line in capsys.readouterr().out.splitlines() if "█" in line]
    longest = max(len(re.sub("[^▏▎▍▌▋▊▉█]", "", line)) for line in drawn)
    assert 4 <= longest <= letters
    assert columns == 60 or all("model.layers." in line for line in drawn)


def test_the_picture_has_a_row_for_each_layer_and_a_column_for_each_term(
    folders: Path, tmp_path: Path, command: Command
) -> None:
    saved(tmp_path / "a", share_weights=False, layers_to_transform=[0, 2])
    status, said = command("inspect", tmp_path / "a", "--svg", tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    (member,) = said["members"]
    written = re.findall(r"<rect x=[^>]*/><text[^>]*>([^<]*)</text>", svg)
    assert (status, written) == (0, [f"{size['size']:.3g}" for size in member["sizes"]])
    for label in ("model.layers.0", "model.layers.2", ">f1<", ">l2<"):
        assert label in svg
    status, said = command("inspect", tmp_path / "a", "--svg", tmp_path / "a.svg")
    assert (status, said["error"]["code"]) == (1, "config.value")
    status, said = command("inspect", tmp_path / "a", "--svg", tmp_path / "none" / "a.svg")
    assert (status, said["error"]["code"]) == (1, "config.value")
    (tmp_path / "link.svg").symlink_to(tmp_path / "nowhere")
    status, said = command("inspect", tmp_path / "a", "--svg", tmp_path / "link.svg")
    assert (status, said["error"]["code"]) == (1, "config.value")


def test_a_folder_without_a_reft_has_no_figure(folders: Path, tmp_path: Path, command: Command) -> None:
    for options in (["--figure"], ["--svg", tmp_path / "x.svg"]):
        status, said = command("inspect", folders / "lora", *options)
        assert (status, said["error"]["code"]) == (1, "inspect.figure")
    assert not (tmp_path / "x.svg").exists()


def test_without_being_asked_nothing_is_measured(folders: Path, command: Command) -> None:
    _, said = command("inspect", folders / "reft")
    assert "sizes" not in said["members"][0]
