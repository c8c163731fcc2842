"""`push_to_hub`: one commit, nothing of anyone else's lost, nothing stale left behind."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import huggingface_hub._snapshot_download as snapshots
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model

from contract.tiny import base_model, reft_model
from peft_reft import MixedReftModel, ReftConfig, list_adapters, pull, push_to_hub
from peft_reft.continual import SkillRouter
from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import ConfigError, HubError, ManifestError, ReftError
from peft_reft.storage.hub_folder import push_saved
from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.faults import call_first, lost_answer, server_error
from tools.loopback_hub.objects import StoredFile

from .folders import contents, ended, started, stored, upload

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="other processes are forked"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
ALONE = {"adapter_config.json", "adapter_model.safetensors", "reft_manifest.json", "README.md"}
LORA = {"adapter_config.json", "adapter_model.safetensors"}


def edit_files(name: str) -> set[str]:
    return {f"reft/{name}/{file}" for file in ALONE - {"README.md"}}


def mixed(**more: object) -> MixedReftModel:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    edits = {"default": lora, **{name: ReftConfig(task_type="CAUSAL_LM", r=2) for name in more}}
    return MixedReftModel.from_configs(base_model("llama"), edits)


def other_process(name: str) -> None:
    """Another process pushes its ReFT, to the end."""
    assert ended(started(lambda: push_to_hub(reft_model("llama"), "me/x", add=name))) == 0


def code_of(*arguments: object, **options: object) -> str:
    with pytest.raises(HubError) as caught:
        push_to_hub(*arguments, **options)  # type: ignore[arg-type]
    return caught.value.code


def lora_files(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in LORA}


def lora_repo(hub: LoopbackHub, bundle: Path, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "lora"
    folder.mkdir()
    for name, content in lora_files(bundle).items():
        (folder / name).write_bytes(content)
    upload(hub, folder)
    return lora_files(bundle)


def test_the_first_push_looks_for_no_adapters_where_no_file_is(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's client would tell its user that no file matched."""
    said: list[str] = []
    monkeypatch.setattr(snapshots.logger, "warning", said.append)
    push_to_hub(reft_model("llama"), "me/new")
    assert said == []
    push_to_hub(reft_model("llama"), "me/new")
    assert said == []


def test_a_reft_is_added_to_a_lora_whose_bytes_stay(hub: LoopbackHub, bundle: Path, tmp_path: Path) -> None:
    lora = lora_repo(hub, bundle, tmp_path)
    hub.requests.clear()
    push_to_hub(reft_model("llama"), "me/x", add="edit")
    assert not [r for r in hub.requests if r.line.startswith(("GET /cdn/", "GET /me/x")) and "safetensors" in r.line]
    files = stored(hub, "me/x")
    assert files.keys() == {*LORA, *edit_files("edit"), "reft_index.json", "README.md"}
    assert {name: files[name] for name in LORA} == lora
    pull("me/x", tmp_path / "here")
    assert set(MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "here").peft_config) == {
        "default",
        "edit",
    }
    stock = base_model("llama")
    stock.load_adapter(str(tmp_path / "here"))
    assert any("lora_" in name for name, _ in stock.named_modules())
    assert PeftModel.from_pretrained(base_model("llama"), tmp_path / "here").peft_config["default"].r == 2
    push_to_hub(reft_model("llama"), "me/x", add="second")
    assert [member.name for member in list_adapters("me/x")] == ["default", "edit", "second"]
    card = stored(hub, "me/x")["README.md"].decode()
    assert "`edit`: loreft" in card
    assert "`second`: loreft" in card


def test_a_reft_alone_does_not_take_the_place_of_a_lora_unasked(
    hub: LoopbackHub, bundle: Path, tmp_path: Path
) -> None:
    lora = lora_repo(hub, bundle, tmp_path)
    assert code_of(reft_model("llama"), "me/x") == "hub.occupied"
    assert stored(hub, "me/x") == lora
    push_to_hub(reft_model("llama"), "me/x", add=False)
    assert stored(hub, "me/x").keys() == ALONE


def test_what_cannot_be_added_is_refused(hub: LoopbackHub, bundle: Path, tmp_path: Path) -> None:
    lora = lora_repo(hub, bundle, tmp_path)
    assert code_of(reft_model("llama"), "me/x", add="default") == "hub.member"
    with pytest.raises(ConfigError, match="name"):
        push_to_hub(reft_model("llama"), "me/x", add="../edit")
    with pytest.raises(ConfigError, match="2 ReFTs"):
        push_to_hub(mixed(a=1, b=1), "me/x", add="edit")
    assert stored(hub, "me/x") == lora
    push_to_hub(reft_model("llama"), "me/alone")
    assert code_of(reft_model("llama"), "me/alone", add="edit") == "hub.layout"


def test_files_of_former_members_go_in_the_same_commit(hub: LoopbackHub) -> None:
    push_to_hub(mixed(a=1, b=1), "me/x")
    hub.storage.repos["me/x"].commit({"notes.txt": StoredFile.regular(b"mine")}, title="Notes")
    push_to_hub(mixed(b=1), "me/x")
    expected = {*LORA, *edit_files("b"), "reft_index.json", "README.md", "notes.txt"}
    assert stored(hub, "me/x").keys() == expected
    repo = hub.storage.repos["me/x"]
    assert len(repo.history(repo.resolve("main"))) == 4


def test_two_processes_that_add_at_once_are_both_there(hub: LoopbackHub, bundle: Path, tmp_path: Path) -> None:
    lora = lora_repo(hub, bundle, tmp_path)
    hub.faults.add(r"POST /api/models/me/x/commit/", call_first(lambda: other_process("theirs")))
    push_to_hub(reft_model("llama"), "me/x", add="ours")
    assert hub.faults.unused == 0
    assert [member.name for member in list_adapters("me/x")] == ["default", "theirs", "ours"]
    pull("me/x", tmp_path / "here")
    assert {name: contents(tmp_path / "here")[name] for name in LORA} == lora


@pytest.mark.parametrize("add", ["theirs", False])
def test_of_two_processes_with_the_same_adapter_one_is_told(
    hub: LoopbackHub, bundle: Path, tmp_path: Path, add: str | bool
) -> None:
    lora_repo(hub, bundle, tmp_path)
    hub.faults.add(r"POST /api/models/me/x/commit/", call_first(lambda: other_process("theirs")))
    assert code_of(reft_model("llama"), "me/x", add=add) == "hub.conflict"
    assert [member.name for member in list_adapters("me/x")] == ["default", "theirs"]


def test_attempts_are_bounded(hub: LoopbackHub) -> None:
    push_to_hub(mixed(a=1), "me/x")
    hub.faults.add(r"POST /api/models/me/x/commit/", server_error(412), times=9)
    assert code_of(mixed(a=1, b=1), "me/x") == "hub.busy"
    assert hub.faults.unused == 4
    hub.faults.clear()


def test_a_push_resumes_after_a_failure(hub: LoopbackHub) -> None:
    model = reft_model("llama")
    hub.faults.add(r"POST /api/models/me/x/commit/", server_error(500))
    assert code_of(model, "me/x") == "hub.server"
    assert stored(hub, "me/x") == {}
    hub.requests.clear()
    push_to_hub(model, "me/x")
    assert stored(hub, "me/x").keys() == ALONE
    assert not [request for request in hub.requests if request.line.startswith("PUT ")]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: LoopbackHub) -> None:
    model = reft_model("llama")
    hub.faults.add(r"POST /api/models/me/x/commit/", lost_answer(500))
    assert code_of(model, "me/x") == "hub.server"
    push_to_hub(model, "me/x")
    repo = hub.storage.repos["me/x"]
    assert len(repo.history(repo.resolve("main"))) == 2


def test_private_is_kept_or_refused(hub: LoopbackHub) -> None:
    model = reft_model("llama")
    push_to_hub(model, "me/secret", private=True)
    assert hub.storage.repos["me/secret"].private
    push_to_hub(model, "me/open")
    before = stored(hub, "me/open")
    assert code_of(mixed(a=1), "me/open", private=True) == "hub.private"
    assert stored(hub, "me/open") == before


def test_a_torn_repository_is_replaced_only_when_asked(hub: LoopbackHub) -> None:
    push_to_hub(mixed(a=1), "me/x")
    hub.storage.repos["me/x"].commit({"reft_index.json": None}, title="Torn")
    with pytest.raises(ManifestError, match="reft_index"):
        push_to_hub(mixed(b=1), "me/x")
    push_to_hub(mixed(b=1), "me/x", add=False)
    assert list_adapters("me/x") == [Member.at("default", "lora"), Member.at("b", "reft")]
    assert not [path for path in stored(hub, "me/x") if path.startswith("reft/a/")]


def test_a_pull_request_leaves_the_branch_alone(hub: LoopbackHub) -> None:
    push_to_hub(mixed(a=1), "me/x")
    before = stored(hub, "me/x")
    url = push_to_hub(mixed(b=1), "me/x", create_pr=True)
    assert url.endswith("/discussions/1")
    assert stored(hub, "me/x") == before
    assert list_adapters("me/x", revision="refs/pr/1")[-1] == Member.at("b", "reft")


def test_a_refused_commit_and_a_model_without_edits_are_named(hub: LoopbackHub) -> None:
    hub.faults.add(r"POST /api/models/me/x/commit/", server_error(403), times=1)
    assert code_of(reft_model("llama"), "me/x") == "hub.refused"
    lora = get_peft_model(base_model("llama"), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="no ReFT"):
        push_to_hub(lora, "me/x")
    assert stored(hub, "me/x") == {}


def test_an_upload_that_failed_halfway_goes_on_from_there(hub: LoopbackHub) -> None:
    model = mixed(a=1, b=1)
    hub.faults.add(r"PUT ", server_error(400), times=1)
    assert code_of(model, "me/x") == "hub.refused"
    assert stored(hub, "me/x") == {}
    arrived = len(hub.storage.repos["me/x"].lfs)
    hub.requests.clear()
    push_to_hub(model, "me/x")
    assert len([request for request in hub.requests if request.line.startswith("PUT ")]) == 3 - arrived
    assert [member.name for member in list_adapters("me/x")] == ["default", "a", "b"]


def test_many_members_go_in_one_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    names = [f"edit-{number:02}" for number in range(30)]
    push_to_hub(mixed(**dict.fromkeys(names, 1)), "me/x")
    repo = hub.storage.repos["me/x"]
    assert len(repo.history(repo.resolve("main"))) == 2
    assert [member.name for member in list_adapters("me/x")] == ["default", *names]
    pull("me/x", tmp_path / "here")
    assert [member.name for member in list_adapters(tmp_path / "here")] == ["default", *names]


def test_a_tag_holds_what_was_pushed_before(hub: LoopbackHub, tmp_path: Path) -> None:
    push_to_hub(mixed(a=1), "me/x")
    HfApi(endpoint=hub.endpoint, token=hub.token).create_tag("me/x", tag="v1.0")
    push_to_hub(mixed(b=1), "me/x")
    assert list_adapters("me/x", revision="v1.0")[-1].name == "a"
    pull("me/x", tmp_path / "v1", revision="v1.0")
    assert list_adapters(tmp_path / "v1")[-1].name == "a"
    assert list_adapters("me/x")[-1].name == "b"


def test_processes_that_add_at_the_same_time_are_all_there_or_told(
    hub: LoopbackHub, bundle: Path, tmp_path: Path
) -> None:
    lora_repo(hub, bundle, tmp_path)
    model, start = reft_model("llama"), os.pipe()

    def push(name: str) -> None:
        os.close(start[1])
        os.read(start[0], 1)  # until all are there
        try:
            push_to_hub(model, "me/x", add=name)
        except HubError as error:
            os._exit(2 if error.code == "hub.busy" else 3)

    children = {name: started(functools.partial(push, name)) for name in ("one", "two", "three")}
    os.close(start[1])
    ends = {name: ended(child) for name, child in children.items()}
    os.close(start[0])
    assert set(ends.values()) <= {0, 2}, ends
    there = {member.name for member in list_adapters("me/x")}
    assert there == {"default", *(name for name, status in ends.items() if status == 0)}
    pull("me/x", tmp_path / "here")


def router(*names: str) -> SkillRouter:
    weight = torch.randn(len(names), 6, generator=torch.Generator().manual_seed(0))
    return SkillRouter(names, "representation", 1, weight, torch.arange(len(names), dtype=torch.float32))


def test_a_router_goes_with_the_adapters_and_comes_back_with_them(hub: LoopbackHub, tmp_path: Path) -> None:
    model = mixed(dates=1, names=1)
    sent = router("dates", "names", "__base__")
    push_to_hub(model, "me/x", router=sent)
    pull("me/x", tmp_path / "here")
    again = SkillRouter.from_pretrained(tmp_path / "here")
    assert again.adapters == sent.adapters
    assert torch.equal(again.weight, sent.weight)
    push_to_hub(reft_model("llama"), "me/x", add="third")
    assert "skill_router.safetensors" in stored(hub, "me/x")
    push_to_hub(model, "me/x", add=True, router=router("names", "dates"))
    pull("me/x", tmp_path / "later")
    assert SkillRouter.from_pretrained(tmp_path / "later").adapters == ("names", "dates")
    push_to_hub(model, "me/x")
    assert "skill_router.safetensors" not in stored(hub, "me/x")  # the adapters that it knew have been replaced


def test_a_router_goes_from_a_folder_whose_adapters_another_repository_replaces(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    push_to_hub(mixed(dates=1, names=1), "me/x", router=router("dates", "names", "__base__"))
    push_to_hub(mixed(dates=1, names=1, third=1), "me/wider")
    push_to_hub(reft_model("llama"), "me/other")
    pull("me/x", tmp_path)
    pull("me/wider", tmp_path)
    assert SkillRouter.from_pretrained(tmp_path).adapters == ("dates", "names", "__base__")  # they are all there
    (tmp_path / "notes.txt").write_text("mine")
    pull("me/other", tmp_path)
    assert not (tmp_path / "skill_router.safetensors").exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_router_to_what_is_not_pushed_under_its_name_is_refused(hub: LoopbackHub) -> None:
    for names, options in ((("edit", "other"), {}), (("default", "edit"), {"add": True}), (("edit",), {"add": "new"})):
        with pytest.raises(ConfigError, match="router sends to"):
            push_to_hub(mixed(edit=1), "me/x", router=router(*names), **options)
    assert not hub.storage.repos


def test_a_saved_router_is_pushed_with_its_folder_and_a_broken_one_is_not_pulled(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    mixed(edit=1).save_pretrained(str(tmp_path / "saved"))
    router("default", "edit").save_pretrained(tmp_path / "saved")
    push_saved(tmp_path / "saved", "me/x")
    pull("me/x", tmp_path / "here")
    name = "skill_router.safetensors"
    assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    hub.storage.repos["me/x"].commit({name: StoredFile.regular(b"none")}, title="Spoilt")
    with pytest.raises(ReftError):
        pull("me/x", tmp_path / "spoilt")
    assert not (tmp_path / "spoilt" / name).exists()


def test_a_saved_router_that_is_none_or_sends_elsewhere_is_not_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    saved, name = tmp_path / "saved", "skill_router.safetensors"
    mixed(edit=1).save_pretrained(str(saved))
    (saved / name).write_bytes(b"none")
    with pytest.raises(ConfigError, match="is no router"):
        push_saved(saved, "me/x")
    router("edit", "other").save_pretrained(saved)
    with pytest.raises(ConfigError, match="sends to 'other'"):
        push_saved(saved, "me/x")
    router("edit", "__base__").save_pretrained(saved)
    with pytest.raises(ConfigError, match="sends to 'edit'"):
        push_saved(saved, "me/x", add="new")
    with pytest.raises(ConfigError, match="it is a SkillRouter"):
        push_to_hub(mixed(edit=1), "me/x", router=object())  # type: ignore[arg-type]
    assert not hub.storage.repos
    push_saved(saved, "me/x", add=True)
    with pytest.raises(ConfigError, match="folder is None"):
        pull("me/x", None)  # type: ignore[arg-type]
