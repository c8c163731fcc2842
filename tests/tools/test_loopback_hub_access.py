"""Private and gated repositories, good, wrong and missing tokens."""

from __future__ import annotations

import pathlib

import pytest
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tools.loopback_hub import ClientLeakedTokenError, HubFailedError, LoopbackHub

# huggingface_hub 2.4 hands its upload body to httpx2 by a keyword that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def client(hub: LoopbackHub, token: str | bool) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def status(caught: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return caught.value.response.status_code


def test_each_token_knows_its_user(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == "me"
    assert client(hub, hub.read_token).whoami()["auth"]["accessToken"]["role"] == "read"
    assert client(hub, hub.stranger_token).whoami()["name"] == "stranger"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(hub, "hf_wrong").whoami()


def test_a_private_repository_is_the_owners_alone(hub: LoopbackHub, api: HfApi, cache: pathlib.Path) -> None:
    api.create_repo("me/x", private=True)
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.safetensors", repo_id="me/x")

    def download(token: str | bool) -> bytes:
        path = client(hub, token).hf_hub_download("me/x", "a.safetensors", cache_dir=cache / str(token))
        return pathlib.Path(path).read_bytes()

    assert download(hub.token) == download(hub.read_token) == b"secret"
    with pytest.raises(RepositoryNotFoundError) as anonymous:
        download(False)
    with pytest.raises(RepositoryNotFoundError) as stranger:
        download(hub.stranger_token)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as wrong:
        download("hf_wrong")
    assert (status(anonymous), status(stranger), status(wrong)) == (401, 404, 401)
    assert not isinstance(wrong.value, RepositoryNotFoundError)

    api.update_repo_settings("me/x", private=False)
    assert download(False) == download(hub.stranger_token) == b"secret"
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        download("hf_wrong")


def test_a_gated_repository_shows_its_names_and_keeps_its_files(
    hub: LoopbackHub, api: HfApi, cache: pathlib.Path
) -> None:
    api.create_repo("me/x")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="a.json", repo_id="me/x")
    api.update_repo_settings("me/x", gated="manual")
    stranger = client(hub, hub.stranger_token)
    assert stranger.model_info("me/x").gated == "manual"
    assert client(hub, False).list_repo_files("me/x") == [".gitattributes", "a.json"]
    with pytest.raises(GatedRepoError) as refused:
        stranger.hf_hub_download("me/x", "a.json", cache_dir=cache)
    with pytest.raises(GatedRepoError) as anonymous:
        client(hub, False).hf_hub_download("me/x", "a.json", cache_dir=cache)
    assert (status(refused), status(anonymous)) == (403, 401)
    hub.storage.repos["me/x"].admitted.add("stranger")
    assert stranger.hf_hub_download("me/x", "a.json", cache_dir=cache)


def test_only_a_write_token_of_the_owner_writes(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x")
    head = api.model_info("me/x").sha
    for token, expected in ((hub.read_token, 403), (hub.stranger_token, 403), (False, 401), ("hf_wrong", 401)):
        other = client(hub, token)
        with pytest.raises(HfHubHTTPError) as push:
            other.upload_file(path_or_fileobj=b"{}", path_in_repo="a.safetensors", repo_id="me/x")
        with pytest.raises(HfHubHTTPError) as tag:
            other.create_tag("me/x", tag="v1")
        with pytest.raises(HfHubHTTPError) as create:
            other.create_repo("me/y")
        with pytest.raises(HfHubHTTPError) as delete:
            other.delete_repo("me/x")
        assert {status(push), status(tag), status(create), status(delete)} == {expected}
    assert api.model_info("me/x").sha == head
    api.delete_repo("me/x")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/x")


def test_a_stranger_may_open_a_pull_request(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x")
    pr = client(hub, hub.stranger_token).upload_file(
        path_or_fileobj=b"better", path_in_repo="a.safetensors", repo_id="me/x", create_pr=True
    )
    assert pr.pr_revision == "refs/pr/1"
    assert api.list_repo_commits("me/x", revision="refs/pr/1")[0].authors == ["stranger"]


def test_a_token_on_the_cdn_fails_the_block() -> None:
    with pytest.raises(ClientLeakedTokenError), LoopbackHub() as hub:  # noqa: PT012
        repo = hub.storage.create("me/x")
        response = get_session().get(
            f"{hub.cdn_endpoint}/cdn/{repo.repo_id}/0/a", headers={"Authorization": f"Bearer {hub.token}"}
        )
        assert response.status_code == 400


def test_a_link_serves_only_what_it_was_signed_for(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("me/x", private=True)
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.safetensors", repo_id="me/x")
    put = next(request for request in hub.requests if request.method == "PUT")
    for query in ("", put.query):
        assert get_session().get(f"{hub.cdn_endpoint}{put.path}/a.safetensors?{query}").status_code == 403


def test_a_bug_of_the_hub_fails_the_block() -> None:
    with pytest.raises(HubFailedError), LoopbackHub() as hub:  # noqa: PT012
        hub.storage.create("me/x").refs["refs/heads/main"] = "no such commit"
        with pytest.raises(HfHubHTTPError):
            HfApi(endpoint=hub.endpoint, token=hub.token).model_info("me/x")
