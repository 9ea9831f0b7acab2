"""A plain client of the emulated cloud: a request, an answer, nothing clever; and what a pod is usually made of."""

import http.client
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.pod import wait_until

from podctl.sim.sim import Sim

GPU = "NVIDIA GeForce RTX 4090"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


class Api:
    """REST v2 and GraphQL of a cloud, with the account's key or another."""

    def __init__(self, sim: Sim, key: str | None = None, agent: str = "test") -> None:
        self.sim, self.key, self.agent = sim, sim.account_key if key is None else key, agent

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Raises ConnectionError where the answer does not come."""
        connection = http.client.HTTPConnection(urlsplit(self.sim.url).netloc, timeout=20)
        sent = {"User-Agent": self.agent} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path.replace(" ", "%20"), data, sent | dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.ask("GET", f"/v2{path}")

    def post(self, path: str, body: Any) -> Reply:
        return self.ask("POST", f"/v2{path}", body)

    def patch(self, path: str, body: Any) -> Reply:
        return self.ask("PATCH", f"/v2{path}", body)

    def delete(self, path: str) -> Reply:
        return self.ask("DELETE", f"/v2{path}")

    def act(self, pod: str, action: str) -> Reply:
        return self.post(f"/pods/{pod}/action", {"action": action})

    def graphql(self, query: str) -> Any:
        return self.ask("POST", "/graphql", {"query": query}).json

    def create(self, **changes: Any) -> str:
        """The id of a new pod."""
        reply = self.post("/pods", wish(**changes))
        assert reply.status == 201, reply.body
        return str(reply.json["id"])

    def create_running(self, **changes: Any) -> str:
        """The same, once its address is told."""
        id = self.create(**changes)
        self.wait_for_address(id)
        return id

    def wait_for_address(self, id: str) -> dict[str, Any]:
        """Let time go by until the answers tell its address; the pod."""

        def told() -> Any:
            pod = self.get(f"/pods/{id}").json
            return pod if pod["ssh"]["direct"] and not self.sim.advance(0.1) else self.sim.advance(0.1)

        pod = wait_until(told, f"an address of {id}")
        assert isinstance(pod, dict)
        return pod


def wish(**changes: Any) -> dict[str, Any]:
    """A create call's body; `volume` and `gpu` in short."""
    body: dict[str, Any] = {
        "name": "pc-me-demo",
        "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
        "disk": 20,
        "gpu": {"id": changes.pop("gpu", GPU), "count": changes.pop("count", 1)},
        "ports": ["22/tcp"],
    }
    if volume := changes.pop("volume", ""):
        body["mounts"] = {"network": [{"volumeId": volume, "path": "/workspace"}]}
    return body | changes


class Laptop:
    """A key pair, and the plain ssh client with it."""

    def __init__(self, root: Path) -> None:
        self.key = root / "laptop_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.public = self.key.with_suffix(".pub").read_text().strip()

    def ssh(self, pod: Mapping[str, Any], command: str) -> subprocess.CompletedProcess[str]:
        """A command in a pod, by the address that its provider tells."""
        at = pod["ssh"]["direct"]
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        argv += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        argv += ["-p", str(at["port"]), f"{at['username']}@{at['host']}", command]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)

    def ssh_when_ready(self, pod: Mapping[str, Any], command: str) -> str:
        """The same once its sshd lets us in; what it printed."""
        wait_until(lambda: self.ssh(pod, "true").returncode == 0, f"ssh to {pod['ssh']}")
        done = self.ssh(pod, command)
        assert done.returncode == 0, done.stderr
        return done.stdout
