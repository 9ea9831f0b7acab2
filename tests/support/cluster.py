"""Two machines in small: a network namespace each, joined by a pair of links. Needs root and iproute2."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from support.netpod import ip, namespace_of
from support.pod import wait_until

LINK = "cluster0"


@contextmanager
def two_nodes() -> Iterator[list[tuple[list[str], str]]]:
    """For each node: what its commands begin with, and its address. All of it is gone with this process."""
    holders = [
        subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]) for _ in range(2)
    ]
    try:
        for h in holders:
            wait_until(
                lambda h=h: namespace_of(h.pid, "net") not in ("", namespace_of(os.getpid(), "net")), "a network"
            )
        first, second = (str(h.pid) for h in holders)
        ip("link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second)
        nodes = []
        for n, h in enumerate(holders):
            inside = ["nsenter", f"--net=/proc/{h.pid}/ns/net"]
            address = f"10.78.0.{n + 1}"
            ip("addr", "add", f"{address}/24", "dev", LINK, before=inside)
            for link in ("lo", LINK):
                ip("link", "set", link, "up", before=inside)
            nodes.append((inside, address))
        yield nodes
    finally:
        for h in holders:
            h.kill()
            h.wait()
