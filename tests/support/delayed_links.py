"""A network whose links have a delay, for kernels without netem: a process between namespaces' TUN devices.

python delayed_links.py SECONDS: reads lines "NAME NAMESPACE ADDRESS", makes such a device in each of these
namespaces, answers each line with "there", and hands packets on so many seconds after they came. Segments
stay together as the kernel's own devices have them (a header of virtio says how), so that some thousand
packets a second do for 1 Gb/s.
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque

_SET_NAME, _SET_OFFLOAD = 0x400454CA, 0x400454D0  # TUNSETIFF, TUNSETOFFLOAD
_TUN, _NO_INFORMATION, _VIRTIO_HEADER = 0x1, 0x1000, 0x4000
_CHECKSUMS, _SEGMENTS = 0x1, 0x2  # TUN_F_CSUM, TUN_F_TSO4
_HEADER_BYTES = 10  # virtio's, before IP's
_MOST_BYTES = 70_000


def main(delay_s: float) -> None:
    devices: dict[bytes, int] = {}  # by address; a host whose namespace is gone has none
    waiting: deque[tuple[float, int, bytes]] = deque()  # all wait equally long, so the first is due first
    while True:
        left_s = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        ready, _, _ = select.select([0, *devices.values()], [], [], left_s)
        now = time.monotonic()
        for descriptor in ready:
            if descriptor:
                try:
                    packet = os.read(descriptor, _MOST_BYTES)
                except OSError:
                    devices = {address: one for address, one in devices.items() if one != descriptor}
                    continue
                target = devices.get(packet[_HEADER_BYTES + 16 : _HEADER_BYTES + 20])
                if target is not None:
                    waiting.append((now + delay_s, target, packet))
                continue
            if not (line := sys.stdin.readline()):
                return
            name, namespace, address = line.split()
            devices[socket.inet_aton(address)] = _device(name, namespace)
            sys.stdout.write("there\n")
            sys.stdout.flush()
        while waiting and waiting[0][0] <= time.monotonic():
            _, target, packet = waiting.popleft()
            try:
                os.write(target, packet)
            except OSError:  # its queue is full, or its namespace gone: packets are lost, as in any network
                continue


def _device(name: str, namespace: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _TUN | _NO_INFORMATION | _VIRTIO_HEADER
    fcntl.ioctl(descriptor, _SET_NAME, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(descriptor, _SET_OFFLOAD, _CHECKSUMS | _SEGMENTS)
    subprocess.run(["ip", "link", "set", name, "netns", namespace], check=True)
    return descriptor


if __name__ == "__main__":
    main(float(sys.argv[1]))
