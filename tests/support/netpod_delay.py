"""A slow link between this machine and a pod: two tunnels, and a heap of packets that are due later.

usage: netpod_delay.py LINK NETWORK_NAMESPACE DELAY_S LOSS. Makes LINK here and slow0 there, says `ready`, and passes
each packet on after DELAY_S, but for a share of LOSS. The links go with this process. (Few kernels have netem.)
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
LONGEST = 1 << 16
AT_ONCE = 64  # packets read from one side before the other is looked at


def open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def enter(namespace: str) -> None:
    fd = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns", namespace)
    os.close(fd)


def carry(here: int, there: int, delay_s: float, loss: float) -> None:
    chance = random.Random(7)
    due: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        readable, _, _ = select.select([here, there], [], [], wait)
        now = time.monotonic()
        for side in readable:
            for _ in range(AT_ONCE):
                try:
                    packet = os.read(side, LONGEST)
                except OSError:  # no more, or the link is down
                    break
                if chance.random() >= loss:
                    count += 1
                    heapq.heappush(due, (now + delay_s, count, there if side == here else here, packet))
        while due and due[0][0] <= time.monotonic():
            try:
                os.write(due[0][2], due[0][3])
            except OSError:  # a link that is down loses it
                pass
            heapq.heappop(due)


def main(link: str, namespace: str, delay_s: float, loss: float) -> None:
    here = open_tun(link)
    enter(namespace)
    there = open_tun("slow0")
    print("ready", flush=True)
    carry(here, there, delay_s, loss)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
