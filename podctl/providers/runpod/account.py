"""Whose RunPod account: the key, where it came from, and which servers it may be shown to."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from podctl.errors import BadInput, NoRights
from podctl.project import find_project, working_dir
from podctl.settings import FILE, read_env_file

KEY = "RUNPOD_API_KEY"
API_URL, GRAPHQL_URL = "PODCTL_RUNPOD_API_URL", "PODCTL_RUNPOD_GRAPHQL_URL"
DEFAULT_API_URL = "https://api.runpod.io/v2"
DEFAULT_GRAPHQL_URL = "https://api.runpod.io/graphql"
KEYS_PAGE = "https://console.runpod.io/user/settings"
BILLING_PAGE = "https://console.runpod.io/user/billing"
HOW_TO_GET_ONE = f"make a key at {KEYS_PAGE} (API keys), then put {KEY}=… into {FILE}"


@dataclass(frozen=True)
class Account:
    """A key and the servers it is for."""

    key: SecretStr
    source: str = "the environment"  # where the key was found
    shadows: bool = False  # the environment's key hides another one, of the project's .runpod.env
    on_a_pod: bool = False  # this shell is one on a RunPod pod
    api_url: str = DEFAULT_API_URL
    graphql_url: str = DEFAULT_GRAPHQL_URL

    @property
    def advice(self) -> str:
        """What to type where RunPod does not like the key: the likeliest cause first."""
        if self.shadows:
            return f"unset {KEY}: the environment's hides the one in {FILE}; it may be a pod's own key, or an old one"
        if self.on_a_pod and self.source == "the environment":
            return f"this is a RunPod pod, and {KEY} here is the pod's own key: {HOW_TO_GET_ONE}"
        return f"{KEY} ({self.source}) may be a pod's own key, an old one, or lack rights: {HOW_TO_GET_ONE}"


def load_account(environ: Mapping[str, str] | None = None, project_root: Path | None = None) -> Account:
    """The account of the project that we are in: environment, then its `.runpod.env`.

    Server addresses are the environment's alone: a file that came with somebody's project must not say where the key
    goes. Raises NoRights, BadInput.
    """
    environ = os.environ if environ is None else environ
    root = project_root if project_root is not None else find_project(working_dir(), working_dir()).root
    here, in_file = environ.get(KEY, "").strip(), (read_env_file(root / FILE).get(KEY) or "").strip()
    key = here or in_file
    if not key:
        raise NoRights("there is no RUNPOD_API_KEY", HOW_TO_GET_ONE)
    source = "the environment" if here else FILE
    if not re.fullmatch(r"[!-~]+", key):
        raise NoRights(f"{KEY} ({source}) holds spaces or characters that no key has", "copy it again, nothing else")
    return Account(
        key=SecretStr(key),
        source=source,
        shadows=bool(here and in_file and here != in_file),
        on_a_pod=bool(environ.get("RUNPOD_POD_ID")),
        api_url=server(API_URL, environ.get(API_URL, "") or DEFAULT_API_URL),
        graphql_url=server(GRAPHQL_URL, environ.get(GRAPHQL_URL, "") or DEFAULT_GRAPHQL_URL),
    )


def server(name: str, url: str) -> str:
    """A base URL without its last slash. Raises BadInput where the key would travel in the clear."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        raise BadInput(f"{name} is no URL", f"for example {DEFAULT_API_URL}") from None
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.username:
        raise BadInput(f"{name} is no URL of a server", f"for example {DEFAULT_API_URL}")
    if parts.scheme == "http" and not is_near(host):
        raise BadInput(f"{name} begins with http://: the key would travel in the clear", "https://…")
    return url.rstrip("/")


def is_near(host: str) -> bool:
    """This machine or a private network: an emulated cloud."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_private
