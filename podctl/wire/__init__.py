"""The way onto a machine over SSH: two wires that carry commands, and one host that is made of either.

`base.py` is the seam, `openssh.py` and `paramiko.py` are the wires, `host.py` is the host, `known.py` says whom we
trust.
"""

from podctl.host import Host
from podctl.pods import SshAddress


def ssh_host(address: SshAddress) -> Host:
    """The host at an address. Nothing is connected yet."""
    from podctl.wire.host import SshHost, best_wire

    return SshHost(best_wire(address))
