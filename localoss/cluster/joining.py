"""Being part of a Ray cluster: which machines there are, and what can be wrong with it in one line."""

import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from localoss import __version__, settings
from localoss.errors import UsageError

INSTALL = "ray isn't installed: pip install 'localoss[cluster]'"
_REACHED_S = 5.0
_WATCH_S, _FAILURES = (
    3.0,
    3,
)  # how often the head is looked for, and after how many failures it counts as lost
# What a connection of gRPC begins with: HTTP/2's preface, and an empty frame of settings. The other side's
# first frame has that type, too, in its fourth byte.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = b"\x04"


class ClusterError(UsageError):
    """The cluster can't be used as it is."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster. id: Ray's. name: its address. cpus: that Ray may give away there."""

    id: str
    name: str
    cpus: float


def ray_module() -> Any:
    """The library. Raises: UsageError without it."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(INSTALL if error.name == "ray" else f"{error.name}: {INSTALL}") from None
    return ray


@contextmanager
def joined(address: str, notice: Callable[[str], None]) -> Iterator[Any]:
    """As join, until the context ends."""
    ray = join(address, notice)
    try:
        yield ray
    finally:
        ray.shutdown()


def join(address: str, notice: Callable[[str], None]) -> Any:
    """Ray, connected to the cluster at `address`, which auto finds on this machine; once for a process.

    notice: told if other people's machines may reach it. Raises: UsageError in one line.
    """
    ray = ray_module()
    if ray.is_initialized():
        return ray
    with _nothing_on_stderr():
        leads_to = _found(ray) if address == "auto" else address
    _check_reachable(address, leads_to)
    _check_joined(ray, address)
    settings.set_variable("RAY_USAGE_STATS_ENABLED", "0")
    settings.set_variable("RAY_BACKEND_LOG_LEVEL", "fatal")  # else lost machines are pages on stderr
    try:
        with _nothing_on_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray has many kinds, none of which are told apart by type
        raise ClusterError(_told(address, error)) from None
    _say_no_pages(ray)
    head = ray.get_runtime_context().gcs_address
    watch = threading.Thread(target=_watch_head, args=(ray, head, notice), daemon=True)
    watch.start()
    warn_if_public([machine.name for machine in machines(ray)], notice)
    return ray


def _watch_head(ray: Any, head: str, notice: Callable[[str], None]) -> None:
    """Say that the cluster's head is lost: after a minute of that Ray ends this process without a word."""
    host, _, port = head.rpartition(":")
    failures = 0
    while ray.is_initialized():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
            failures = 0
        except OSError:
            failures += 1
        if failures == _FAILURES:
            notice(
                f"the cluster's head, {head}, is lost; Ray ends its programs in a minute, this command, too: "
                "start it again once the cluster is back"
            )
        time.sleep(_WATCH_S)


def _say_no_pages(ray: Any) -> None:
    """Ray prints a page to stdout about each process that died, log_to_driver or not: where --json has its
    report. What became of a machine is told in a line by those who used it.
    """
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):  # what prints it has no public name
        worker.print_to_stdstream = lambda *_, **__: None


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Ray's C++ writes there past Python, that a setting was read, say; errors are raised anyhow."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def machines(ray: Any) -> list[Machine]:
    """Those that are there now and may run something, this one first."""
    here = ray.get_runtime_context().get_node_id()
    found = [
        Machine(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]
    return sorted(found, key=lambda machine: (machine.id != here, machine.name))


def on(ray: Any, actor: type, machine: Machine, **options: Any) -> Any:
    """`actor` as Ray's, to be made on `machine` and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(machine.id, soft=False)
    return ray.remote(actor).options(scheduling_strategy=strategy, **options)


def warn_if_public(names: list[str], notice: Callable[[str], None]) -> None:
    """Ray runs what it is sent by whoever reaches its ports: say so where that may be anyone."""
    public = [name for name in names if _is_public(name)]
    if public:
        notice(
            f"note: Ray listens on {', '.join(public[:3])}, which the internet may reach, and runs what it "
            "is sent: see docs/cluster.md for its tokens and TLS"
        )


def check_version(name: str, version: str) -> str | None:
    """What is wrong with a machine that has localoss `version`; None if nothing is."""
    if version == __version__:
        return None
    return f"{name} has localoss {version}, this machine {__version__}; install the same on both"


def first_line(error: BaseException) -> str:
    """What of an error of Ray's is for a user: these have pages of what happened where."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(cause).__name__


def _is_public(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_global
    except ValueError:
        return False


def _found(ray: Any) -> str | None:
    """Where `auto` leads, for which there is no public name; None where Ray says itself what is wrong."""
    try:
        found: str | None = ray._private.services.canonicalize_bootstrap_address("auto")
        return found
    except Exception:
        return None


def _check_reachable(given: str, address: str | None) -> None:
    """Raises: ClusterError at once where no cluster answers, which takes Ray minutes to say.

    given: as the user wrote it; address: where that leads, if it is known.
    """
    if address is None:
        return
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise ClusterError(
            f"--ray {given}: run the command on a machine of the cluster; `ray start --address=…` joins it"
        )
    if not colon or not port.isdecimal() or not host:
        raise ClusterError(f"--ray {given!r}: give auto, or the head's address as 192.168.0.2:6379")
    tls = _own_tls(given)
    try:
        answer = _first_bytes(host.strip("[]"), int(port), tls)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"--ray {given}: nobody answers there ({reason}); `ray start --head` begins a cluster"
        ) from None
    if answer[3:4] == _SETTINGS:
        return
    if tls:
        raise ClusterError(
            f"--ray {given}: what answers there takes none of the certificates of RAY_TLS_…, or uses no TLS"
        )
    raise ClusterError(
        f"--ray {given}: what answers there is no Ray cluster, or one that uses TLS: then set "
        "RAY_USE_TLS=1 and the certificates here, too"
    )


def _own_tls(given: str) -> ssl.SSLContext | None:
    """What Ray's programs here speak TLS with; None where they don't.

    Raises: ClusterError for files that Ray would look for in vain, again and again.
    """
    if not settings.is_on("RAY_USE_TLS"):
        return None
    variables = settings.environment({})
    names = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")
    for name in names:
        if not os.access(variables.get(name, ""), os.R_OK):
            raise ClusterError(f"--ray {given}: RAY_USE_TLS is set, but {name} names no file to be read")
    authority, certificate, key = (variables[name] for name in names)
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise ClusterError(f"--ray {given}: the files of RAY_TLS_… are no certificates ({error})") from None
    context.check_hostname = False  # Ray looks at that itself
    context.set_alpn_protocols(["h2"])
    return context


def _first_bytes(host: str, port: int, tls: ssl.SSLContext | None) -> bytes:
    """What a server says to gRPC's first words; b"" if it says nothing. Raises: OSError if there is none."""
    with socket.create_connection((host, port), _REACHED_S) as plain:
        try:
            with tls.wrap_socket(plain, server_hostname=host) if tls else plain as connection:
                connection.sendall(_PREFACE)
                return connection.recv(9)
        except OSError:
            return b""


def _check_joined(ray: Any, given: str) -> None:
    """Raises: ClusterError on a machine where no part of Ray runs, which takes Ray itself a minute to say."""
    try:
        nodes = ray._private.services.find_node_ids()
    except Exception:  # it has no public name: then Ray says it
        return
    if not nodes:
        raise ClusterError(
            f"--ray {given}: this machine is in no Ray cluster; `ray start --address=…` joins one"
        )


def _told(address: str, error: Exception) -> str:
    text = str(error)
    if "Version mismatch" in text:
        theirs, ours = _versions(text)
        return f"--ray {address}: the cluster has {theirs}, this machine {ours}; install the same on both"
    if "uthentication" in type(error).__name__ or "oken" in text.split("\n")[0]:
        return f"--ray {address}: the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    if isinstance(error, ConnectionError) and ("Failed to connect" in text or "TLS" in text):
        return (
            f"--ray {address}: the cluster refuses this machine: its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN) "
            "or its certificates (RAY_USE_TLS, RAY_TLS_…) are others"
        )
    if isinstance(error, ConnectionError) and address == "auto":
        return "--ray auto: this machine is in no Ray cluster; `ray start --head`, or `ray start --address=…`"
    if "node" in text and "ip" in text.lower() and "found" in text.lower():
        return (
            f"--ray {address}: this machine isn't in that cluster; `ray start --address={address}` joins it"
        )
    return f"--ray {address}: {first_line(error)}"


def _versions(text: str) -> tuple[str, str]:
    """Ray's words about both sides: "Ray 2.60.0 with Python 3.11.2" of the cluster's and of ours."""
    found = {"Ray": [], "Python": []}  # type: dict[str, list[str]]
    for line in text.splitlines():
        name, _, version = line.strip().partition(": ")
        if name in found:
            found[name].append(version)
    both = [f"Ray {ray} with Python {python}" for ray, python in zip(*found.values(), strict=False)]
    return (both[0], both[1]) if len(both) > 1 else ("another version", "its own")
