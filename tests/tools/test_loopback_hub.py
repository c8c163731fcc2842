"""The loopback hub as the real huggingface_hub client sees it: push, read, revisions, errors."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tools.loopback_hub import LoopbackHub

# huggingface_hub 2.4 hands its upload body to httpx2 by a keyword that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A regular file, an LFS file by its name in a sub-folder, an LFS file by its size."""
    root = tmp_path / "adapter"
    (root / "reft").mkdir(parents=True)
    (root / "adapter_config.json").write_text('{"rank": 4}')
    (root / "reft" / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    (root / "vocabulary.txt").write_bytes(b"word\n" * 2_200_000)
    return root


def read(api: HfApi, path: str, *, cache: pathlib.Path, revision: str | None = None) -> bytes:
    return pathlib.Path(api.hf_hub_download("me/x", path, revision=revision, cache_dir=cache)).read_bytes()


def test_a_pushed_folder_downloads_as_it_was(
    hub: LoopbackHub, api: HfApi, folder: pathlib.Path, cache: pathlib.Path
) -> None:
    assert api.create_repo("me/x").repo_id == "me/x"
    api.upload_folder(repo_id="me/x", folder_path=folder)

    snapshot = pathlib.Path(api.snapshot_download("me/x", cache_dir=cache))

    for path in ("adapter_config.json", "reft/weights.safetensors", "vocabulary.txt"):
        assert (snapshot / path).read_bytes() == (folder / path).read_bytes()
        assert read(api, path, cache=cache / "second") == (folder / path).read_bytes()
    siblings = {s.rfilename: s for s in api.model_info("me/x", files_metadata=True).siblings or []}
    assert siblings["adapter_config.json"].lfs is None
    assert siblings["reft/weights.safetensors"].lfs is not None
    assert siblings["vocabulary.txt"].lfs is not None
    assert not any(request.authorized for request in hub.requests if request.origin == "cdn")


def test_old_commits_stay_readable_by_tag_and_by_id(api: HfApi, cache: pathlib.Path) -> None:
    api.create_repo("me/x")
    first = api.upload_file(path_or_fileobj=b"one", path_in_repo="a.safetensors", repo_id="me/x")
    api.create_tag("me/x", tag="v1")
    second = api.upload_file(path_or_fileobj=b"two", path_in_repo="a.safetensors", repo_id="me/x")

    assert read(api, "a.safetensors", cache=cache) == b"two"
    assert read(api, "a.safetensors", cache=cache, revision="v1") == b"one"
    assert read(api, "a.safetensors", cache=cache, revision=first.oid) == b"one"
    assert read(api, "a.safetensors", cache=cache, revision=second.oid[:8]) == b"two"
    assert [c.commit_id for c in api.list_repo_commits("me/x")][:2] == [second.oid, first.oid]


def test_an_unchanged_push_makes_no_commit_and_sends_no_bytes(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x")
    files = [CommitOperationAdd("a.safetensors", b"weights"), CommitOperationAdd("a.json", b"{}")]
    pushed = api.create_commit("me/x", files, commit_message="first")
    seen = len(hub.requests)

    again = [CommitOperationAdd("a.safetensors", b"weights"), CommitOperationAdd("a.json", b"{}")]
    assert api.create_commit("me/x", again, commit_message="again").oid == pushed.oid

    assert not [r for r in hub.requests[seen:] if r.method == "PUT" or "/commit/" in r.path]


def test_a_taken_name_is_409(api: HfApi) -> None:
    api.create_repo("me/x")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("me/x")
    assert caught.value.response.status_code == 409
    assert api.create_repo("me/x", exist_ok=True).repo_id == "me/x"


def test_a_stale_parent_is_412_and_changes_nothing(api: HfApi) -> None:
    api.create_repo("me/x")
    stale = api.model_info("me/x").sha
    head = api.upload_file(path_or_fileobj=b"{}", path_in_repo="a.json", repo_id="me/x", parent_commit=stale).oid
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(path_or_fileobj=b"[]", path_in_repo="a.json", repo_id="me/x", parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert "A commit has happened since" in str(caught.value)
    assert api.model_info("me/x").sha == head


def test_a_pull_request_leaves_main_alone(api: HfApi, cache: pathlib.Path) -> None:
    api.create_repo("me/x")
    main = api.upload_file(path_or_fileobj=b"main", path_in_repo="a.safetensors", repo_id="me/x").oid
    pr = api.upload_file(path_or_fileobj=b"pr", path_in_repo="a.safetensors", repo_id="me/x", create_pr=True)
    assert (pr.pr_num, pr.pr_revision) == (1, "refs/pr/1")

    onto = api.upload_file(path_or_fileobj=b"{}", path_in_repo="b.json", repo_id="me/x", revision="refs/pr/1")

    assert read(api, "a.safetensors", cache=cache) == b"main"
    assert read(api, "a.safetensors", cache=cache, revision="refs/pr/1") == b"pr"
    refs = api.list_repo_refs("me/x", include_pull_requests=True)
    assert [ref.target_commit for ref in refs.branches] == [main]
    assert [ref.target_commit for ref in refs.pull_requests or []] == [onto.oid]


def test_a_branch_name_may_hold_a_slash(hub: LoopbackHub, api: HfApi, cache: pathlib.Path) -> None:
    api.create_repo("me/x")
    api.create_branch("me/x", branch="dev/x")
    api.upload_file(path_or_fileobj=b"dev", path_in_repo="sub/a.json", repo_id="me/x", revision="dev/x")

    assert read(api, "sub/a.json", cache=cache, revision="dev/x") == b"dev"
    assert api.list_repo_files("me/x", revision="dev/x") == [".gitattributes", "sub/a.json"]
    assert api.list_repo_files("me/x") == [".gitattributes"]
    assert any("/resolve/dev%2Fx/" in request.path for request in hub.requests)
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch("me/x", branch="dev/x")
    api.delete_branch("me/x", branch="dev/x")
    assert [ref.name for ref in api.list_repo_refs("me/x").branches] == ["main"]


def test_tags_are_made_once_and_deleted(api: HfApi) -> None:
    api.create_repo("me/x")
    api.create_tag("me/x", tag="v1", tag_message="first")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_tag("me/x", tag="v1")
    api.create_tag("me/x", tag="v1", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="a.json", repo_id="me/x", revision="v1")
    api.delete_tag("me/x", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/x", revision="v1")


def test_trees_list_folders_and_paths(api: HfApi) -> None:
    api.create_repo("me/x")
    paths = ["a.json", "reft/one/w.safetensors", "reft/two.json"]
    api.create_commit("me/x", [CommitOperationAdd(path, path.encode()) for path in paths], commit_message="all")

    def tree(path: str | None = None, *, recursive: bool = False) -> list[str]:
        return [entry.path for entry in api.list_repo_tree("me/x", path, recursive=recursive)]

    assert tree() == [".gitattributes", "a.json", "reft"]
    assert tree("reft") == ["reft/one", "reft/two.json"]
    assert tree("reft/one") == ["reft/one/w.safetensors"]
    assert tree(recursive=True) == [".gitattributes", "a.json", "reft", "reft/one", *paths[1:]]
    assert [info.path for info in api.get_paths_info("me/x", ["a.json", "none", "reft"])] == ["a.json", "reft"]
    with pytest.raises(EntryNotFoundError):
        tree("none")


def test_files_and_folders_are_deleted_and_replaced_in_one_commit(api: HfApi, folder: pathlib.Path) -> None:
    api.create_repo("me/x")
    old = [CommitOperationAdd(path, b"old") for path in ("a.json", "old/b.json", "old/c.json", "keep.json")]
    api.create_commit("me/x", old, commit_message="old")
    api.create_commit(
        "me/x", [CommitOperationDelete("a.json"), CommitOperationDelete("old/")], commit_message="delete"
    )
    assert api.list_repo_files("me/x") == [".gitattributes", "keep.json"]
    api.upload_folder(repo_id="me/x", folder_path=folder / "reft", delete_patterns="*")
    assert api.list_repo_files("me/x") == [".gitattributes", "weights.safetensors"]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("a.json", "me/x")


def test_a_commit_cannot_leave_the_repository(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x")
    escaping = CommitOperationAdd("a.json", b"{}")
    escaping.path_in_repo = "sub/../../a.json"  # past the client's own check
    with pytest.raises(BadRequestError, match="Invalid path"):
        api.create_commit("me/x", [escaping], commit_message="escape")


def test_ranges_of_regular_and_lfs_files(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x")
    data = bytes(range(100))
    both = [CommitOperationAdd("a.safetensors", data), CommitOperationAdd("a.json", data)]
    api.create_commit("me/x", both, commit_message="both")
    for path in ("a.safetensors", "a.json"):
        url = f"{hub.endpoint}/me/x/resolve/main/{path}"
        for asked, expected in (("0-9", data[:10]), ("90-", data[90:]), ("-7", data[-7:]), ("50-500", data[50:])):
            response = get_session().get(url, headers={"Range": f"bytes={asked}"})
            assert (response.status_code, response.content) == (206, expected)
        assert get_session().get(url, headers={"Range": "bytes=100-"}).status_code == 416


def test_what_is_missing_has_its_own_error(api: HfApi, cache: pathlib.Path) -> None:
    api.create_repo("me/x")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("me/none", "a.json", cache_dir=cache)
    with pytest.raises(RevisionNotFoundError):
        read(api, "a.json", revision="none", cache=cache)
    with pytest.raises(EntryNotFoundError):
        read(api, "a.json", cache=cache)
    remembered = [path.name for path in cache.glob("models--me--x/.no_exist/*/*")]
    assert remembered == ["a.json"], "the client keeps the absence in its cache"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gpt2")


def test_a_part_that_is_not_served_says_so(api: HfApi) -> None:
    api.create_repo("me/x")
    with pytest.raises(HfHubHTTPError, match=r"does not serve POST .*super-squash") as caught:
        api.super_squash_history("me/x")
    assert caught.value.response.status_code == 501


def test_a_card_that_is_no_yaml_is_refused(api: HfApi) -> None:
    api.create_repo("me/x")
    with pytest.raises(ValueError, match="bad YAML"):
        api.upload_file(path_or_fileobj=b"---\ntags: [reft\n---\n", path_in_repo="README.md", repo_id="me/x")


CARD_CLIENT = """
from huggingface_hub import HfApi, ModelCard, create_repo

create_repo("me/x")
card = ModelCard("---\\nlibrary_name: peft\\ntags: [reft]\\n---\\n# A card\\n")
card.push_to_hub("me/x")
assert ModelCard.load("me/x").data.library_name == "peft"
info = HfApi().model_info("me/x")
assert (info.library_name, info.tags, info.card_data.tags) == ("peft", ["reft"], ["reft"])
"""


def test_a_client_process_pushes_a_model_card(hub: LoopbackHub, tmp_path: pathlib.Path) -> None:
    environment = os.environ | hub.environment()
    done = subprocess.run([sys.executable, "-c", CARD_CLIENT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.storage.repos["me/x"].resolve("main").files["README.md"].content is not None
