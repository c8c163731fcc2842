"""Adapters through the Hub: pushed in one process, loaded in others by tag, commit and branch, bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.faults import call_first, flipped_bit
from tools.loopback_hub.objects import StoredFile

from .client import become_client
from .folders import ended, started

TESTS = Path(__file__).parents[1]
COMMON = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

home = Path(sys.argv[1])

def base():
    return AutoModelForCausalLM.from_pretrained("me/base").eval()

def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 13)[None]).logits

def stronger(model, part):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.mul_(2)
"""
AUTHOR = """
import peft_reft
from contract.tiny import base_model
from huggingface_hub import HfApi
from peft_reft import MixedReftModel, ReftConfig, push_to_hub

expected = {}
api = HfApi()
base_model("llama").push_to_hub("me/base")
assert base().name_or_path == "me/base"
reft = dict(task_type="CAUSAL_LM", r=2, positions="f2+l2", init_weights=False)
torch.manual_seed(1)

model = get_peft_model(base(), ReftConfig(**reft))
expected["v1"] = logits(model)
model.push_to_hub("me/x")
api.create_tag("me/x", tag="v1")
expected["commit"] = expected["v1"]
commit = api.model_info("me/x").sha
stronger(model, ".bias")
expected["main"] = logits(model)
assert not torch.equal(expected["main"], expected["v1"])
model.push_to_hub("me/x")
model.push_to_hub("me/flipped")

# our own verb: a card; then someone writes into it; then a second push
url = push_to_hub(model, "me/card", commit_message="First")
assert "/commit/" in url, url
text = Path(api.hf_hub_download("me/card", "README.md")).read_text()
text = text.replace("# me/card", "# My adapter\\n\\nTrained on my own poems.") + "\\nThanks to my cat.\\n"
text = text.replace("tags:\\n", "tags:\\n- poems\\n").replace("---\\n", "---\\nlicense: mit\\n", 1)
api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="me/card")
stronger(model, ".bias")
expected["card"] = logits(model)
push_to_hub(model, "me/card")
stronger(model, ".bias")
expected["dev"] = logits(model)
push_to_hub(model, "me/card", revision="dev")
push_to_hub(model, "me/card", create_pr=True)

# a base that lies on this machine
base_model("llama").save_pretrained(home / "local-base")
local = AutoModelForCausalLM.from_pretrained(home / "local-base")
local = get_peft_model(local, ReftConfig(**reft))
assert local.peft_config["default"].base_model_name_or_path == str(home / "local-base")
expected["local"] = logits(local)
local.save_pretrained(home / "saved")
push_to_hub(local, "me/local")
local.peft_config["default"].base_model_name_or_path = str(home / "local-base" / "gone")
push_to_hub(local, "me/local-gone")

# a LoRA and a ReFT
lora = dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
mixed = MixedReftModel.from_configs(base(), {"default": LoraConfig(**lora), "edit": ReftConfig(**reft)})
expected["both v1"] = logits(mixed)
mixed.push_to_hub("me/both")
api.create_tag("me/both", tag="v1")
stronger(mixed, "reft_")
expected["both"] = logits(mixed)
mixed.push_to_hub("me/both")
mixed.set_adapter("default")
expected["both lora"] = logits(mixed)
local = AutoModelForCausalLM.from_pretrained(home / "local-base")
MixedReftModel.from_configs(local, {"default": LoraConfig(**lora), "edit": ReftConfig(**reft)}).push_to_hub(
    "me/both-local"
)

# someone else pushes between the look and the commit
push_to_hub(model, "me/stale")
torch.save((expected, commit), home / "expected.pt")
"""
CLIENT = """
import peft_reft
from peft_reft import MixedReftModel
from peft_reft.hub_format.errors import IntegrityError

expected, commit = torch.load(home / "expected.pt")
same = lambda model, name: torch.equal(logits(model), expected[name])
for revision, name in (("v1", "v1"), (commit, "commit"), ("main", "main"), (None, "main")):
    assert same(PeftModel.from_pretrained(base(), "me/x", revision=revision), name), name
    assert same(AutoPeftModelForCausalLM.from_pretrained("me/x", revision=revision), name), name
assert same(AutoPeftModelForCausalLM.from_pretrained("me/x"), "main")
model = base()
model.load_adapter("me/x")
assert same(model, "main")
model = PeftModel.from_pretrained(base(), "me/x", revision="v1")
model.load_adapter("me/x", "newer")
assert same(model, "v1")
model.set_adapter("newer")
assert same(model, "main")
assert same(PeftModel.from_pretrained(base(), "me/card"), "card")
assert same(PeftModel.from_pretrained(base(), "me/card", revision="dev"), "dev")
assert same(PeftModel.from_pretrained(base(), "me/card", revision="refs/pr/1"), "dev")
assert same(PeftModel.from_pretrained(base(), "me/local"), "local")
assert same(MixedReftModel.from_pretrained(base(), "me/both"), "both")
assert same(MixedReftModel.from_pretrained(base(), "me/both", revision="v1"), "both v1")
assert same(PeftModel.from_pretrained(base(), "me/both"), "both lora")
mixed = MixedReftModel.from_pretrained(base(), "me/both")
mixed.load_adapter("me/x", "guest")
mixed.set_adapter("guest")
assert same(mixed, "main")
alone = PeftModel.from_pretrained(base(), "me/both", subfolder="reft/edit")
assert "edit" not in alone.peft_config and not same(alone, "both lora")
assert MixedReftModel.from_pretrained(base(), "me/both", local_files_only=True)
try:
    PeftModel.from_pretrained(base(), "me/flipped")
except IntegrityError as error:
    assert "adapter_model.safetensors" in str(error), error
else:
    raise AssertionError("flipped bytes were loaded")
print("all loaded")
"""
STRANGER = """
import sys
assert sys.argv[1:] == ["of its own"]
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("me/x")
print(type(model).__name__, model.peft_config["default"].positions)
"""


def environment(hub: LoopbackHub) -> dict[str, str]:
    return {**os.environ, **hub.environment(), "PYTHONPATH": str(TESTS)}


def run(hub: LoopbackHub, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment(hub), capture_output=True, text=True)


def others_commit(hub: LoopbackHub) -> None:
    card = b"---\ntags:\n- theirs\n---\n\n# Theirs\n"
    hub.storage.repos["me/stale"].commit(
        {"notes.txt": StoredFile.regular(b"theirs"), "README.md": StoredFile.regular(card)}, title="Theirs"
    )


@dataclass
class Published:
    """A hub to which one process has pushed everything, in its folder `home`; another has `loaded` it, as `client`."""

    hub: LoopbackHub
    home: Path
    client: dict[str, str]
    loaded: subprocess.CompletedProcess[str]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.hub.storage.repos[repo_id]
        return {
            path: file.content if file.content is not None else repo.lfs[str(file.sha256)]
            for path, file in repo.resolve(revision).files.items()
        }

    def card(self, repo_id: str, revision: str = "main") -> ModelCard:
        return ModelCard(self.files(repo_id, revision)["README.md"].decode())

    def titles(self, repo_id: str) -> list[str]:
        repo = self.hub.storage.repos[repo_id]
        return [commit.title for commit in repo.history(repo.resolve("main"))]


def author(hub: LoopbackHub, home: Path) -> None:
    become_client(hub, home, pytest.MonkeyPatch())  # never undone: this process ends here
    sys.argv = ["author", str(home)]
    exec(COMMON + AUTHOR, {})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    home = tmp_path_factory.mktemp("author")
    with LoopbackHub() as hub:
        hub.faults.add(r"POST /api/models/me/stale/commit/", call_first(lambda: others_commit(hub)))
        assert ended(started(lambda: author(hub, home))) == 0
        assert hub.faults.unused == 0
        client = environment(hub)
        hub.faults.add(r"GET /cdn/me/flipped/.*/adapter_model.safetensors", flipped_bit(-2), times=5)
        loaded = subprocess.run(
            [sys.executable, "-c", COMMON + CLIENT, str(home)], env=client, capture_output=True, text=True
        )
        hub.faults.clear()
        yield Published(hub, home, client, loaded)


def test_stock_verbs_push_the_format(published: Published) -> None:
    files = published.files("me/x")
    assert {"adapter_config.json", "adapter_model.safetensors", "reft_manifest.json", "README.md"} <= files.keys()
    config = json.loads(files["adapter_config.json"])
    assert config["peft_type"] == "REFT"
    assert config["base_model_name_or_path"] == "me/base"


def test_another_process_loads_the_same_bits(published: Published) -> None:
    assert published.loaded.returncode == 0, published.loaded.stderr
    assert "all loaded" in published.loaded.stdout


def test_a_program_that_does_not_import_us_is_run_through_us(published: Published, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STRANGER)
    registered = run(published.hub, "-m", "peft_reft", str(script), "of its own")
    assert registered.returncode == 0, registered.stderr
    assert registered.stdout.strip() == "PeftModelForCausalLM f2+l2"


def test_the_card_says_what_it_is_and_how_to_use_it(published: Published) -> None:
    card = published.card("me/card")
    assert {"peft-reft", "representation-finetuning"} <= set(card.data.tags)
    assert card.data.library_name == "peft"
    assert card.data.base_model == "me/base"
    assert card.data.pipeline_tag == "text-generation"
    for line in ("pip install peft-reft", "python -m peft_reft ", "import peft_reft", '"me/card"', "f2+l2"):
        assert line in card.text, line


def test_a_second_push_keeps_what_the_author_wrote(published: Published) -> None:
    card = published.card("me/card")
    assert "Trained on my own poems." in card.text
    assert card.text.rstrip().endswith("Thanks to my cat.")
    assert card.data.license == "mit"
    assert "poems" in card.data.tags
    assert len(card.data.tags) == len(set(card.data.tags))
    assert card.text.count("pip install peft-reft") == 1


def test_a_push_is_one_commit_to_the_branch_or_pull_request_asked_for(published: Published) -> None:
    titles = published.titles("me/card")
    assert len(titles) == 4  # made, first push, the author's text, second push
    assert titles[2] == "First"
    repo = published.hub.storage.repos["me/card"]
    assert repo.pull_requests == ["refs/pr/1"]
    for revision in ("dev", "refs/pr/1"):
        commit = repo.resolve(revision)
        assert commit.parent == repo.resolve("main").oid
        assert "Trained on my own poems." in published.card("me/card", revision).text


@pytest.mark.parametrize("repo_id", ["me/local", "me/local-gone", "me/both-local"])
def test_a_local_path_stays_at_home(published: Published, repo_id: str) -> None:
    for path, content in published.files(repo_id).items():
        assert b"local-base" not in content, path
        assert str(published.home).encode() not in content, path
        if path.endswith("adapter_config.json"):
            assert json.loads(content)["base_model_name_or_path"] is None
    assert published.card(repo_id).data.base_model is None
    if repo_id == "me/local":
        saved = json.loads((published.home / "saved" / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == str(published.home / "local-base")


def test_a_bundle_is_pushed_whole(published: Published) -> None:
    files = published.files("me/both")
    part = {"adapter_config.json", "adapter_model.safetensors"}
    edit = {f"reft/edit/{name}" for name in (*part, "reft_manifest.json")}
    assert files.keys() - {".gitattributes"} == {*part, *edit, "reft_index.json", "README.md"}
    card = published.card("me/both")
    assert {"lora", "peft-reft"} <= set(card.data.tags)
    assert card.data.base_model == "me/base"
    assert 'MixedReftModel.from_pretrained(model, "me/both")' in card.text


def test_a_push_that_came_between_is_kept(published: Published) -> None:
    files = published.files("me/stale")
    assert files["notes.txt"] == b"theirs"
    assert {"adapter_config.json", "adapter_model.safetensors", "reft_manifest.json"} <= files.keys()
    card = published.card("me/stale")
    assert "# Theirs" in card.text
    assert "theirs" in card.data.tags
    assert "pip install peft-reft" in card.text
    assert published.titles("me/stale") == ["Upload ReFT adapter", "Theirs", "initial commit"]
    tries = [r for r in published.hub.requests if re.search(r"POST /api/models/me/stale/commit/", r.line)]
    assert len(tries) == 2


OFFLINE = """
import os, socket
assert os.environ["HF_HUB_OFFLINE"] == "1"
import peft_reft
from peft_reft import MixedReftModel, list_adapters, pull
from peft_reft.hub_format.errors import HubError

def no_network(*_, **__):
    raise AssertionError("the network was asked")

socket.create_connection = socket.socket.connect = no_network
expected, commit = torch.load(home / "expected.pt")
assert torch.equal(logits(PeftModel.from_pretrained(base(), "me/x")), expected["main"])
assert torch.equal(logits(PeftModel.from_pretrained(base(), "me/x", revision=commit)), expected["commit"])
assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained("me/x")), expected["main"])
assert torch.equal(logits(MixedReftModel.from_pretrained(base(), "me/both")), expected["both"])
assert [member.name for member in list_adapters("me/both")] == ["default", "edit"]
pull("me/both", home / "offline")
for ask in (lambda: pull("me/never", home / "never"), lambda: MixedReftModel.from_pretrained(base(), "me/never")):
    try:
        ask()
    except HubError as error:
        assert error.code == "hub.offline" and "connection" in error.fix, error
    else:
        raise AssertionError("something was found")
assert not (home / "never").exists()
print("offline")
"""


def test_a_process_without_network_loads_what_another_has_fetched(published: Published) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + OFFLINE, str(published.home)],
        env={**published.client, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "offline"
