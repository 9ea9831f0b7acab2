"""A rented machine as a host: found again where it starts anew at another address, and known to be gone when it is."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TypeVar

from podctl.errors import PodGone, ProviderUnclear, Unreachable, Untrusted
from podctl.host import Host, Stream, host_of
from podctl.pods import Pod, Result
from podctl.providers.base import Provider
from podctl.ready import announced_by

LOOK_S = 10.0  # between two questions to the provider, while a machine does not answer
T = TypeVar("T")


class RentedHost:
    """Every call goes to where the pod is now; one that does not get through asks its provider before the next.

    Raises PodGone, besides what a host raises, once the provider says twice that there is no such pod or that it is
    broken, or that it is switched off. `host_key` is what was announced when it was started.
    """

    def __init__(
        self, provider: Provider, pod_id: str, name: str, host_key: str = "", reach: Callable[[Pod], Host] = host_of
    ) -> None:
        self.name = name
        self._provider = provider
        self._pod_id = pod_id
        self._host_key = host_key
        self._reach = reach
        self._host: Host | None = None
        self._pod: Pod | None = None
        self._looked_at = -LOOK_S
        self._absent_since: float | None = None
        self._gone: PodGone | None = None

    # ---- what every host does

    def run(self, argv: Sequence[str], *, stdin: str | bytes = "", timeout_s: float = 60) -> Result:
        return self._through(lambda h: h.run(argv, stdin=stdin, timeout_s=timeout_s))

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], *, stdin: Iterable[bytes] | None = None) -> Iterator[Stream]:
        with self._noticing(), self._entered(lambda h: h.stream(argv, stdin=stdin)) as stream:
            yield stream

    def push(self, source: Path, target: PurePath, *, files_from: Sequence[str] = ()) -> None:
        self._through(lambda h: h.push(source, target, files_from=files_from))

    def pull(self, source: PurePath, target: Path, *, names: Sequence[str] = ()) -> None:
        self._through(lambda h: h.pull(source, target, names=names))

    def read(self, path: PurePath) -> bytes | None:
        return self._through(lambda h: h.read(path))

    def follow(self, path: PurePath, *, offset: int = 0) -> Iterator[bytes]:
        with self._noticing():
            yield from self._there().follow(path, offset=offset)

    @contextlib.contextmanager
    def forward(self, remote_port: int, local_port: int) -> Iterator[None]:
        with self._noticing(), self._entered(lambda h: h.forward(remote_port, local_port)):
            yield

    def terminal(self, argv: Sequence[str] = ()) -> int:
        return self._through(lambda h: h.terminal(argv))

    # ---- where it is

    @property
    def pod(self) -> Pod:
        """With its address and the key that is spoken to there. Raises Unreachable, PodGone, ProviderUnclear."""
        self._there()
        assert self._pod is not None
        return self._pod

    def _there(self) -> Host:
        if self._host is None:
            try:
                pod = self._asked()
            except ProviderUnclear as e:
                raise Unreachable(e.message, e.hint) from e
            if pod.ssh is None:
                raise Unreachable(f"{self.name} is {pod.state}, without an address yet", "try again in a minute")
            key = self._host_key
            if not key:
                announced = announced_by(self._provider, pod)
                if announced is None or announced.trouble:
                    why = announced.trouble if announced else "its log does not tell its host key yet"
                    raise Unreachable(f"{self.name}: {why}", "try again in a minute")
                key = announced.host_key
            self._pod = replace(pod, ssh=replace(pod.ssh, host_key=key))
            self._host = self._reach(self._pod)
        return self._host

    def _asked(self) -> Pod:
        """The pod by its provider's word now. Raises PodGone."""
        self._looked_at = time.monotonic()
        pod = self._provider.get(self._pod_id)
        if pod.state in ("gone", "stopped", "broken"):
            first = self._absent_since = self._absent_since or self._looked_at
            if self._looked_at - first >= LOOK_S or pod.state == "stopped" or self._pod is None:
                self._gone = PodGone(
                    f"{self.name} ({self._pod_id}) is {pod.state} at {self._provider.name}", "podctl pods", pod.state
                )
                raise self._gone
            what = "calls it broken" if pod.state == "broken" else "does not find it"
            raise Unreachable(f"{self.name} does not answer, and {self._provider.name} {what}", "podctl pods")
        self._absent_since = self._gone = None
        return pod

    def _through(self, call: Callable[[Host], T]) -> T:
        with self._noticing():
            try:
                return call(self._there())
            except Untrusted:  # nothing was sent: where the pod has started anew since, its new key is asked for
                if not self._has_moved():
                    raise
            return call(self._there())

    @contextlib.contextmanager
    def _entered(self, call: Callable[[Host], AbstractContextManager[T]]) -> Iterator[T]:
        with contextlib.ExitStack() as stack:
            yield self._through(lambda h: stack.enter_context(call(h)))

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """What does not get through: is the pod still there, and at the same place?"""
        try:
            yield
        except (PodGone, Untrusted):
            raise
        except Unreachable:
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._has_moved()
            if self._gone is not None:
                raise self._gone from None
            raise

    def _has_moved(self) -> bool:
        """Ask the provider; forget an address and a key that are no longer the pod's. Raises PodGone."""
        before = self._pod
        try:
            pod = self._asked()
            announced = announced_by(self._provider, pod) if pod.ssh is not None else None
        except ProviderUnclear:
            return False
        if before is None or before.ssh is None or pod.ssh is None:
            self._host = None
            return True
        key = announced.host_key if announced is not None and not announced.trouble else before.ssh.host_key
        same = (pod.ssh.host, pod.ssh.port, key) == (before.ssh.host, before.ssh.port, before.ssh.host_key)
        if not same:
            self._host_key = key
            self._pod = replace(pod, ssh=replace(pod.ssh, host_key=key))
            self._host = self._reach(self._pod)
        return not same
