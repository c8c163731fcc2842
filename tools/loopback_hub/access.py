"""Tokens, and what each may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from starlette.requests import Request

from .errors import HubError, repo_not_found
from .storage import Repository, Storage


@dataclass(frozen=True, slots=True)
class Account:
    """The user behind a token, and the token's role."""

    user: str
    role: Literal["read", "write"]


WRITE_TOKEN = "hf_loopbackWrite"
READ_TOKEN = "hf_loopbackRead"
STRANGER_TOKEN = "hf_loopbackStranger"

ACCOUNTS = {
    WRITE_TOKEN: Account("me", "write"),
    READ_TOKEN: Account("me", "read"),
    STRANGER_TOKEN: Account("stranger", "write"),
}


def path_value(request: Request, name: str) -> str:
    """A path parameter with `%2F` and the like decoded (routes match the path as it was sent)."""
    return unquote(request.path_params[name])


def repo_id_of(request: Request) -> str:
    """`owner/name` from the route."""
    return f"{path_value(request, 'owner')}/{path_value(request, 'name')}"


class Access:
    """Turns a request into the repository it may use, or raises what the Hub answers otherwise."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def account(self, request: Request) -> Account | None:
        """Who asks; None without a token. A wrong token is an error even where none is needed."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        found = ACCOUNTS.get(header.removeprefix("Bearer "))
        if found is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return found

    def signed_in(self, request: Request) -> Account:
        """Who asks, where the Hub needs to know."""
        account = self.account(request)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        return account

    def writer(self, request: Request, namespace: str) -> Account:
        """Who asks, if they may change things under `namespace`."""
        account = self.signed_in(request)
        if account.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if account.user != namespace:
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace!r}")
        return account

    def visible(self, request: Request, repo_id: str | None = None) -> Repository:
        """The repository, if the caller may know of it."""
        account = self.account(request)
        repo = self._storage.repos.get(repo_id if repo_id is not None else repo_id_of(request))
        if repo is None or (repo.private and (account is None or account.user != repo.owner)):
            raise repo_not_found(anonymous=account is None)
        return repo

    def downloadable(self, request: Request) -> Repository:
        """The repository, if the caller may have its files: a gate lets only its owner and the admitted pass."""
        repo = self.visible(request)
        account = self.account(request)
        if repo.gated is False or (account is not None and account.user in {repo.owner, *repo.admitted}):
            return repo
        message = f"Access to model {repo.repo_id} is restricted."
        if account is None:
            message += " You must have access to it and be authenticated to access it. Please log in."
            raise HubError(401, message, code="GatedRepo")
        raise HubError(403, f"{message} You are not in the authorized list.", code="GatedRepo")

    def writable(self, request: Request, repo_id: str | None = None) -> Repository:
        """The repository, if the caller may push to it."""
        repo = self.visible(request, repo_id)
        self.writer(request, repo.owner)
        return repo

    def proposable(self, request: Request) -> Repository:
        """The repository, if the caller may open a pull request: seeing it and a write token suffice."""
        repo = self.visible(request)
        account = self.signed_in(request)
        self.writer(request, account.user)
        return repo
