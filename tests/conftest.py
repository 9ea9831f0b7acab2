"""What every test may rely on, however the suite was started."""

import ipaddress
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background of a script: every child would ignore Ctrl-C too, and wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


def refuse_strangers(event: str, args: tuple) -> None:
    """No test speaks to anything but this machine, and pods that it made of namespaces."""
    if event != "socket.connect" or not isinstance(args[1], tuple):
        return
    host = str(args[1][0])
    try:
        is_ours = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_ours = host == "localhost"
    netpod = sys.modules.get("support.netpod")
    is_ours = is_ours or (netpod is not None and host in netpod.ours)
    if not is_ours:
        raise PermissionError(f"a test wanted to connect to {host}")


sys.addaudithook(refuse_strangers)
