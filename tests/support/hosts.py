"""Hosts of a cluster, played by network namespaces on this machine: for Linux, as root, with ray installed.

Each host has an address of its own, a link of 1 Gb/s with a delay of 1 ms, its own /tmp/ray and its own home.
The delay is the kernel's netem on veths that a bridge joins, or delayed_links.py where it has none.
By hand: python tests/support/hosts.py COMMAND runs COMMAND on the first of three hosts with Ray on them all.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
BRIDGE, NETWORK = "lhbr", "10.77.13"
RATE, DELAY, DELAY_S = "1gbit", "1ms", 0.001
OBJECT_STORE_BYTES = 100_000_000
TOKEN = "5f" * 32


def available() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        return "namespaces need Linux, root, ip and tc"
    if not (Path(sys.executable).parent / "ray").exists():
        return "ray isn't installed"
    return None


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _must(*command: str) -> None:
    done = _call(*command)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class Host:
    """One host. environment: beside this process's own, of what runs there."""

    def __init__(self, number: int, root: Path, links: "Links") -> None:
        self.name, self.ip = f"lh{number}", f"{NETWORK}.{number}"
        self.folder = root / self.name
        self.home = self.folder / "home"
        for folder in (self.home, self.folder / "ray", Path("/tmp/ray")):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "LOCALOSS_HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else whatever else runs here leaves them nothing
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }
        self.close()  # of a run that was cut
        _must("ip", "netns", "add", self.name)
        inside = links.add(self)
        for command in (f"addr add {self.ip}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
            _must("ip", "-n", self.name, *command.split())
        links.shape(self, inside)

    def command(self, *command: str) -> list[str]:
        """What runs `command` there."""
        root = self.folder.parent  # hosts don't see each other's folders
        inside = (
            f"mount --bind {self.folder} /mnt && mount -t tmpfs none {root} && mkdir {self.folder} && "
            f'mount --move /mnt {self.folder} && mount --bind {self.folder / "ray"} /tmp/ray && exec "$@"'
        )
        return ["ip", "netns", "exec", self.name, "sh", "-c", inside, "sh", *command]

    def popen(self, *command: str, **options) -> subprocess.Popen:
        environment = os.environ | self.environment
        return subprocess.Popen(self.command(*command), env=environment, **options)

    def run(self, *command: str, timeout: float = 300, **options) -> subprocess.CompletedProcess[str]:
        environment = os.environ | self.environment
        return subprocess.run(
            self.command(*command),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )

    def localoss(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "localoss", *arguments]

    def start_ray(self, head: "Host | None" = None, *more: str) -> None:
        """Start Ray: the cluster's head, or a part of that of `head`."""
        where = ["--head", "--port=6379", "--include-dashboard=false"]
        if head is not None:
            where = [f"--address={head.ip}:6379"]
        common = [f"--node-ip-address={self.ip}", "--num-cpus=1"]
        common += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", *more]
        ray = str(Path(sys.executable).parent / "ray")
        done = self.run(ray, "start", *where, *common, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def pids(self) -> list[int]:
        return [int(pid) for pid in _call("ip", "netns", "pids", self.name).stdout.split()]

    def kill(self) -> None:
        """Everything that runs there dies at once, as if the power went."""
        for _ in range(20):
            if not (pids := self.pids()):
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.kill()
        _call("ip", "netns", "del", self.name)
        _call("ip", "link", "del", f"{self.name}o")  # which would live as long as a process did there


class Links:
    """What joins the hosts. delay_s: one way; 0 where there is none."""

    def __init__(self) -> None:
        _call("ip", "link", "del", BRIDGE)
        _must("ip", "link", "add", BRIDGE, "type", "bridge")
        _must("ip", "link", "set", BRIDGE, "up")
        self._has_netem = not _call("tc", "qdisc", "add", "dev", BRIDGE, "root", "netem").returncode
        _call("tc", "qdisc", "del", "dev", BRIDGE, "root")
        self._relay: subprocess.Popen[str] | None = None
        if not self._has_netem and os.access("/dev/net/tun", os.R_OK | os.W_OK):
            program = [sys.executable, str(Path(__file__).with_name("delayed_links.py")), str(DELAY_S)]
            self._relay = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        self.delay_s = DELAY_S if self._has_netem or self._relay else 0.0

    def add(self, host: Host) -> str:
        """Join `host`, whose namespace is there; gives its device's name."""
        inside, outside = f"{host.name}i", f"{host.name}o"
        if self._relay and self._relay.stdin and self._relay.stdout:
            self._relay.stdin.write(f"{inside} {host.name} {host.ip}\n")
            assert self._relay.stdout.readline() == "there\n"
            return inside
        _must("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        _must("ip", "link", "set", inside, "netns", host.name)
        _must("ip", "link", "set", outside, "master", BRIDGE, "up")
        return inside

    def shape(self, host: Host, inside: str) -> None:
        """Give its device a rate, and the delay if that is the kernel's to give."""
        shaped = ("tc", "-n", host.name, "qdisc", "add", "dev", inside, "root")
        if self._has_netem:
            _must(*shaped, "netem", "delay", DELAY, "rate", RATE)
        else:
            _must(*shaped, "tbf", "rate", RATE, "burst", "256kb", "latency", "50ms")

    def close(self) -> None:
        if self._relay:
            self._relay.kill()
            self._relay.wait()
        _call("ip", "link", "del", BRIDGE)


class Hosts:
    """Some hosts; `close` leaves nothing of them but their folders."""

    def __init__(self, root: Path, count: int = 3) -> None:
        self.root, self.all = root, []
        self.links = Links()
        for _ in range(count):
            self.add()

    def add(self) -> Host:
        host = Host(len(self.all) + 1, self.root, self.links)
        self.all.append(host)
        return host

    def start_ray(self, count: int | None = None, more: Sequence[str] = ()) -> None:
        head, *others = self.all[:count]
        head.start_ray(None, *more)
        for host in others:
            host.start_ray(head, *more)

    def close(self) -> None:
        for host in self.all:
            host.close()
        self.links.close()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def main() -> int:
    import tempfile

    if why := available():
        print(why, file=sys.stderr)
        return 2
    with Hosts(Path(tempfile.mkdtemp(prefix="hosts-"))) as hosts:
        hosts.start_ray()
        head = hosts.all[0]
        return head.popen(*(sys.argv[1:] or ["sh"])).wait()


if __name__ == "__main__":
    raise SystemExit(main())
