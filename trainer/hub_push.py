"""Send a model to the Hub: looked at first, shown, then one commit that names the run; again is another commit.

A cut upload is continued by the same command: the Hub keeps what it has by its hash. Nothing here prints.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from trainer.card_file import Card, card_file, is_ours
from trainer.errors import BadData
from trainer.hub_faults import HubRefused, again, translated
from trainer.parcel import Parcel

T = TypeVar("T")
HOME = "huggingface.co"
ANSWER_S = 120.0  # how long it may take to answer; the client itself would wait for ever (huggingface_hub 2.4)


@dataclass(frozen=True)
class Looked:
    """The repository as it was found, before anything is sent."""

    user: str
    exists: bool
    is_private: bool
    head: str  # the commit that ours will stand on; empty where there is none
    has_branch: bool
    files: frozenset[str]
    page: str | None  # its README.md


@dataclass(frozen=True)
class Sending:
    """What a push will do."""

    files: Mapping[str, Path | bytes]
    stale: tuple[str, ...]  # weights of an earlier push that this one no longer has


class Hub:
    """One repository of a Hub, for one token. Raises HubRefused."""

    def __init__(self, repo: str, revision: str = "main", sleep: Callable[[float], None] = time.sleep) -> None:
        check_name(repo)
        self.repo, self.revision, self._sleep = repo, revision, sleep
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or f"https://{HOME}"
        self.endpoint = re.sub(r"//[^/]*@", "//", self._endpoint)  # as it is shown: without a password
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub
        from huggingface_hub.utils import logging as quiet

        quiet.set_verbosity_error()  # its warnings quote addresses that are signed
        if urlsplit(self.endpoint).hostname != HOME:
            # Xet is a second protocol with servers of its own, and only that Hub is known to have them (2026-11)
            huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        self._hub = huggingface_hub
        self._token = huggingface_hub.get_token() or ""
        if not self._token:
            raise HubRefused(
                f"nobody is logged in to {self.endpoint}",
                "export HF_TOKEN=… (with the right to write), or: hf auth login",
            )
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, token=self._token)
        _limit_waits()

    @property
    def url(self) -> str:
        at = "" if self.revision == "main" else f"/tree/{self.revision}"
        return f"{self.endpoint}/{self.repo}{at}"

    def look(self) -> Looked:
        """Who we are there, and what is there. Changes nothing."""
        with self._translated():
            user = self._check_rights(self._again(self._api.whoami))
            try:
                info = self._again(lambda: self._api.model_info(self.repo))
            except self._hub.errors.RepositoryNotFoundError:
                return Looked(user, False, True, "", self.revision == "main", frozenset(), None)
            has_branch = True
            try:
                info = self._again(lambda: self._api.model_info(self.repo, revision=self.revision))
            except self._hub.errors.RevisionNotFoundError:
                has_branch = False
            files = frozenset(s.rfilename for s in info.siblings or [])
            page = self._page(info.sha) if "README.md" in files else None
            return Looked(user, True, bool(info.private), str(info.sha), has_branch, files, page)

    def license_of(self, base: str) -> str:
        """Of a model that another was made from; empty where it does not say, or cannot be asked."""
        try:
            card = self._api.model_info(base, timeout=10).card_data
        except Exception:  # of the courtesies of a card, not of the upload
            return ""
        return str(getattr(card, "license", None) or "")

    def send(self, looked: Looked, sending: Sending, message: str, is_private: bool) -> str:
        """Create what is not there, upload, commit; the commit's id. May be repeated after any cut."""
        with self._translated():
            head = looked.head or None
            if not looked.exists:
                self._again(lambda: self._create(is_private))
                head = None
            if not looked.has_branch:
                self._again(lambda: self._api.create_branch(self.repo, branch=self.revision, exist_ok=True))
            made = self._again(lambda: self._commit(sending, message, head))
            return str(made.oid)

    def _create(self, is_private: bool) -> None:
        try:
            self._api.create_repo(self.repo, private=is_private)
        except self._hub.errors.HfHubHTTPError as e:
            if e.response.status_code != 409:  # there already: made a moment ago, and its answer was lost
                raise

    def _commit(self, sending: Sending, message: str, head: str | None) -> Any:
        add, delete = self._hub.CommitOperationAdd, self._hub.CommitOperationDelete
        operations = [
            add(path_in_repo=name, path_or_fileobj=f if isinstance(f, bytes) else str(f))
            for name, f in sending.files.items()
        ]
        if sending.stale:  # asked anew each time: of a commit whose answer was lost they are gone already
            info = self._api.model_info(self.repo, revision=self.revision)
            there = {s.rfilename for s in info.siblings or []}
            operations += [delete(path_in_repo=name) for name in sending.stale if name in there]
        return self._api.create_commit(
            self.repo, operations, commit_message=message, revision=self.revision, parent_commit=head
        )

    def _page(self, commit: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = self._again(
                lambda: self._hub.hf_hub_download(
                    self.repo,
                    "README.md",
                    revision=commit,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    token=self._token,
                )
            )
            return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")

    def _check_rights(self, who: Mapping[str, Any]) -> str:
        name = str(who.get("name", ""))
        owner = self.repo.partition("/")[0]
        token = (who.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            raise HubRefused(
                f"the token {token.get('displayName') or ''!r} of {name} may only read",
                f"make one with the right to write: {self.endpoint}/settings/tokens, then export HF_TOKEN=…",
            )
        orgs = {str(o.get("name")): str(o.get("roleInOrg") or "") for o in who.get("orgs") or []}
        if owner != name and (owner not in orgs or orgs[owner] == "read"):
            mine = ", ".join([name, *(o for o, role in orgs.items() if role != "read")])
            raise HubRefused(
                f"{owner} is somebody else's: this token is of {name}",
                f"--repo {name}/{self.repo.partition('/')[2]}; what it may write to: {mine}",
            )
        return name

    def _again(self, call: Callable[[], T]) -> T:
        return again(call, self._sleep)

    def _translated(self) -> Any:
        return translated(self.repo, self.endpoint, self._token)


@cache
def _limit_waits() -> None:
    """Once a process, for every connection that the client makes from now on."""
    import huggingface_hub

    session = huggingface_hub.get_session()
    kind, hooks = type(session), session.event_hooks
    huggingface_hub.set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=ANSWER_S))


def check_name(repo: str) -> None:
    """Raises BadData where a repository can't be called so."""
    ok = re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", repo, re.ASCII)
    if not ok or "--" in repo or ".." in repo or repo.endswith(".git") or max(map(len, repo.split("/"))) > 96:
        better = re.sub(r"[^A-Za-z0-9/]+", "-", repo).strip("-/") or "model"
        better = better if better.count("/") == 1 else f"USER/{better.replace('/', '-')}"
        raise BadData(f"{repo!r} is no name of a repository", f"USER/NAME, of letters, digits, - _ . as in {better}")


def decide(
    parcel: Parcel, what: str, card: Card, looked: Looked, repo: str, *, is_public: bool, keeps_page: bool
) -> Sending:
    """What is sent to a repository that looks like this. Raises BadData where it should not be."""
    if looked.exists and not looked.is_private and not is_public:
        raise BadData(f"{repo} is public: everybody would have this model", "say --public, or name another repository")
    holds = _kind_of(looked.files)
    if holds not in ("", what):
        raise BadData(
            f"{repo} holds a model of another kind ({holds}): the two would be read for each other",
            f"a repository of its own: --repo {repo}-{what}",
        )
    files: dict[str, Path | bytes] = dict(parcel.files)
    if not (keeps_page and looked.page is not None):
        files["README.md"] = card_file(card, looked.page).encode()
    ours = looked.page is not None and is_ours(looked.page)
    stale = sorted(f for f in looked.files if _is_weights(f) and f not in files) if ours else []
    return Sending(files, tuple(stale))


def _kind_of(files: frozenset[str]) -> str:
    if "adapter_config.json" in files:
        return "adapters"
    if {"model.bin", "vocabulary.json"} <= files:
        return "ct2"
    return "export" if any(f.endswith(".safetensors") for f in files) else ""


def _is_weights(name: str) -> bool:
    return "/" not in name and (name.endswith(".safetensors") or name == "model.safetensors.index.json")
