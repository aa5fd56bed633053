"""Machines as a user describes them: `4x16GB,25GB/s,1Gb/s`."""

import re
from dataclasses import dataclass, replace

from localoss.errors import UsageError
from localoss.plan.machine import Machine
from localoss.settings import size_bytes

EXAMPLE = "4x16GB,25GB/s,1Gb/s"
_MOST = 100_000  # machines
_LEAST_BYTES = 64_000_000  # of a machine's memory: less is a slip
_COUNTED = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(.+)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTkmgt]?)(B|b|bit)(?:/s|ps)", re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s)", re.ASCII)
_CORES = re.compile(r"(\d+)\s*cores?", re.ASCII)
_POWERS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Peer:
    """A machine of a cluster.

    memory_bytes: all that it has. bandwidth: bytes per second of its memory. network: bytes per second of its
    link. latency_s: from a program on it to one on another, one way. cores: that compute.
    """

    memory_bytes: int
    bandwidth: float = 25e9
    network: float = 125e6
    latency_s: float = 0.0003
    cores: int = 4

    @property
    def limit_bytes(self) -> int:
        """What a model may take of it while nothing else runs there."""
        return Machine(self.memory_bytes, self.memory_bytes).limit_bytes


def parse_machines(text: str) -> list[Peer]:
    """The machines that `text` names: kinds with a plus between, each a count, memory, and more.

    Memory bandwidth is in GB/s, the network in Gb/s; a latency as 1ms and cores as 8cores may follow.
    Raises: UsageError.
    """
    machines: list[Peer] = []
    for kind in text.split("+"):
        first, *others = (part.strip() for part in kind.split(","))
        counted = _COUNTED.fullmatch(first)
        if counted is None:
            raise _wrong(text, "a machine without a memory")
        count = int(counted[1] or 1)
        if not 1 <= count <= _MOST - len(machines):
            raise _wrong(text, f"{count:,} machines; 1 to {_MOST:,} can be planned")
        try:
            peer = Peer(size_bytes(counted[2]))
        except UsageError as error:
            raise _wrong(text, str(error)) from None
        if peer.memory_bytes < _LEAST_BYTES:
            raise _wrong(text, f"a machine with {peer.memory_bytes:,} bytes of memory")
        for part in others:
            peer = _with(peer, part, text)
        machines += [peer] * count
    return machines


def _with(peer: Peer, part: str, text: str) -> Peer:
    if rate := _RATE.fullmatch(part):
        amount = float(rate[1]) * _POWERS[rate[2].lower()]
        if not amount:
            raise _wrong(text, f"{part!r} is no speed")
        if rate[3] == "B":
            return replace(peer, bandwidth=amount)
        return replace(peer, network=amount / 8)
    if found := _TIME.fullmatch(part):
        return replace(peer, latency_s=float(found[1]) * _SECONDS[found[2]])
    if (found := _CORES.fullmatch(part)) and int(found[1]):
        return replace(peer, cores=int(found[1]))
    raise _wrong(text, f"{part!r} is no speed, latency or number of cores")


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(f"--machines {text!r}: {what}; write it as {EXAMPLE}")
