"""Versions: what is migrated, what is read as it is, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from contract.tiny import base_model
from peft_reft import ReftConfig
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.bundle import INDEX_NAME, Member, read_index, write_index
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME
from peft_reft.hub_format.migrations import MIGRATIONS, Migration, migrate
from peft_reft.hub_format.schema import FIELDS, from_object, to_object

from . import folders as f

GOOD = to_object({**FIELDS})


def renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """0.8 called the rank `rank`."""
    stored["r"] = stored.pop("rank")
    return stored


def with_turns(stored: dict[str, Any]) -> dict[str, Any]:
    """0.9 had no `turns`: the first was meant."""
    return {**stored, "turns": "first"}


CHAIN = {"0.8": Migration("0.9", reft=renamed), "0.9": Migration("1.0", reft=with_turns)}


def of_0_8() -> dict[str, Any]:
    old = {**GOOD, "rank": GOOD["r"], "spec_version": "0.8"}
    del old["r"], old["turns"]
    return old


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, step in CHAIN.items():
        monkeypatch.setitem(MIGRATIONS, version, step)


def test_the_first_version_has_no_migrations() -> None:
    assert MIGRATIONS == {}


def test_steps_are_applied_in_order_and_leave_their_input_alone() -> None:
    old = of_0_8()
    before = copy.deepcopy(old)
    assert migrate(old, "reft", table=CHAIN) == GOOD
    assert old == before
    assert migrate({**GOOD, "spec_version": "0.9"}, "reft", table=CHAIN) == GOOD


def test_an_object_of_this_version_passes_through() -> None:
    assert migrate(GOOD, "reft", table=CHAIN) == GOOD


@pytest.mark.usefixtures("chain")
def test_an_old_config_is_read_and_written_anew(tmp_path: Path) -> None:
    values = from_object(of_0_8())
    assert (values["r"], values["turns"], values["spec_version"]) == (4, "first", "1.0")
    assert ReftConfig(peft_type="REFT", reft=of_0_8()).to_dict()["reft"] == GOOD


@pytest.mark.usefixtures("chain")
def test_an_old_folder_loads(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")

    def old(content: dict[str, Any]) -> None:
        content["reft"]["rank"] = content["reft"].pop("r")
        content["reft"].pop("turns")
        content["reft"]["spec_version"] = "0.8"

    f.edit(folder / CONFIG_NAME, old)
    f.edit(folder / MANIFEST_NAME, lambda content: content.update(spec_version="0.8"))
    f.redescribe(folder)
    assert check_folder(folder) is not None
    loaded = PeftModel.from_pretrained(base_model("llama"), str(folder))
    assert loaded.peft_config["default"].r == 2


@pytest.mark.parametrize(("part", "file"), [("manifest", MANIFEST_NAME), ("index", INDEX_NAME)])
def test_manifest_and_index_have_steps_of_their_own(part: Any, file: str) -> None:
    step = Migration("1.0", **{part: lambda stored: {**stored, "added": []}})
    assert migrate({"spec_version": "0.9"}, part, table={"0.9": step}) == {"spec_version": "1.0", "added": []}
    others = {"reft", "manifest", "index"} - {part}
    assert all(
        migrate({"spec_version": "0.9"}, other, table={"0.9": step}) == {"spec_version": "1.0"} for other in others
    )  # type: ignore[arg-type]
    with pytest.raises(ReftError) as caught:
        migrate({"spec_version": "0.8"}, part, file=file, table={"0.9": step})
    assert (caught.value.code, caught.value.file) == ("migration.missing", file)


def broken(stored: dict[str, Any]) -> dict[str, Any]:
    return {"r": stored["no such field"]}


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ({}, "migration.missing"),
        ({"0.9": Migration("1.0")}, "migration.missing"),
        ({"0.8": Migration("0.9")}, "migration.missing"),
        ({"0.8": Migration("1.0", reft=broken)}, "migration.failed"),
        ({"0.8": Migration("1.0", reft=lambda stored: None)}, "migration.failed"),  # type: ignore[arg-type,return-value]
        ({"0.8": Migration("0.8")}, "migration.failed"),
        ({"0.8": Migration("0.7")}, "migration.failed"),
    ],
    ids=["none", "not from it", "a gap", "raises", "gives nothing", "no progress", "backwards"],
)
def test_a_step_that_is_missing_or_fails_is_refused_by_name(table: dict[str, Migration], code: str) -> None:
    with pytest.raises(ReftError) as caught:
        migrate(of_0_8(), "reft", table=table)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("version", ["2.0", "1", "1.0.0", "v1.0", "-1.0", "01.0", "1.10000", 1.0, None, ["1.0"]])
def test_what_is_no_version_or_a_higher_major_one_is_refused(version: object) -> None:
    with pytest.raises(ReftError) as caught:
        migrate({**GOOD, "spec_version": version}, "reft")
    assert caught.value.code == "config.version"


def raised(folder: Path, **manifest: Any) -> Path:
    f.edit(folder / CONFIG_NAME, lambda content: content["reft"].update(spec_version="1.4"))
    f.edit(folder / MANIFEST_NAME, lambda content: content.update({"spec_version": "1.4", **manifest}))
    f.redescribe(folder)
    return folder


def test_a_higher_minor_version_is_read_where_everything_in_it_is_known(tmp_path: Path) -> None:
    folder = raised(f.good(tmp_path / "adapter"))
    assert check_folder(folder) is not None
    loaded = PeftModel.from_pretrained(base_model("llama"), str(folder))
    loaded.save_pretrained(str(tmp_path / "again"))  # written in the lowest version that says it
    written = json.loads((tmp_path / "again" / CONFIG_NAME).read_text())["reft"]["spec_version"]
    assert (loaded.peft_config["default"].spec_version, written) == ("1.0", "1.0")


def test_what_a_higher_minor_version_added_is_refused(tmp_path: Path) -> None:
    folder = raised(f.good(tmp_path / "a"), required_features=["tiled"])
    other = raised(f.good(tmp_path / "b"))
    f.reft(tile=3)(other)
    for path, code in ((folder, "manifest.feature"), (other, "config.unknown")):
        for load in (
            lambda path=path: check_folder(path),
            lambda path=path: PeftModel.from_pretrained(base_model("llama"), str(path)),
        ):
            with pytest.raises(ReftError) as caught:
                load()
            assert caught.value.code == code


def test_config_and_manifest_have_one_version(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")
    f.edit(folder / MANIFEST_NAME, lambda content: content.update(spec_version="1.4"))
    with pytest.raises(ReftError) as caught:
        check_folder(folder)
    assert (caught.value.code, caught.value.file) == ("config.version", CONFIG_NAME)


def test_an_index_of_a_higher_minor_version_is_read(tmp_path: Path) -> None:
    f.good(tmp_path / "reft" / "edit")
    write_index(tmp_path, [Member.at("edit", "reft")])
    f.edit(tmp_path / INDEX_NAME, lambda content: content.update(spec_version="1.4"))
    assert read_index(tmp_path) == [Member.at("edit", "reft")]
