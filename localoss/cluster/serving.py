"""A model served by all machines of a Ray cluster: Ray Serve has a replica on each, one endpoint asks them.

Each machine is an application of Ray Serve, which makes its replica anew when that dies. Which of them is
asked, and who isn't while it is restarted, the endpoint decides: it knows what each has read, and what runs.
"""

import asyncio
import logging
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from localoss.cluster.batch import serve_files
from localoss.cluster.joining import ClusterError, Machine, check_version, first_line, joined, machines, on
from localoss.cluster.models import Source, source_of
from localoss.cluster.replicas import ServedMachine, StoreKeeper
from localoss.cluster.worker import Loaded
from localoss.options import LoadOptions
from localoss.server.balancing.front import Front, build_front
from localoss.server.balancing.members import Asked, Gone, Member, Members
from localoss.server.balancing.replica import ReplicaOptions
from localoss.server.batches.batches import Batches
from localoss.server.core.guard import LOOPBACK
from localoss.server.core.metrics import summed
from localoss.server.run import ServeOptions, run_server

_LOOK_S = 2.0
_LOAD_S = 1800.0  # a copy of the model, and its compiling
_METRICS_S = 5.0
_DRAIN_S = 900.0  # for what runs on a replica that is to be restarted
_MOST_AT_ONCE = 1000


@dataclass(eq=False)
class _Served:
    """A machine with a replica. text: the last that it told Prometheus. is_lost: its process died, and Ray
    makes it anew.
    """

    machine: Machine
    app: str
    handle: Any
    member: Member
    text: bytes = b""
    is_lost: bool = False


class Fleet:
    """The replicas of a cluster: starts, restarts, drops them. Used on the event loop."""

    def __init__(
        self,
        ray: Any,
        source: Source,
        loading: LoadOptions,
        options: ReplicaOptions,
        notice: Callable[[str], None],
    ) -> None:
        self._ray, self._source, self._loading, self._options = ray, source, loading, options
        self._notice = notice
        self.members = Members()
        self._served: dict[str, _Served] = {}
        self._refused: dict[str, str] = {}
        self._adding: frozenset[str] = frozenset()
        self._starting: set[asyncio.Task[None]] = set()
        self._gone: list[bytes] = []  # what replicas that are no more told last
        self._files = serve_files(ray, source)
        here = ray.get_runtime_context().get_node_id()
        self._store_name = f"localoss-store-{secrets.token_hex(8)}"
        self._store = on(ray, StoreKeeper, Machine(here, "", 0), num_cpus=0, name=self._store_name).remote()
        self._restart_lock = asyncio.Lock()

    async def start(self) -> None:
        """Start a replica on each machine; returns once one answers. Raises: ClusterError if none can."""
        await asyncio.to_thread(_start_serve)
        found = await asyncio.to_thread(machines, self._ray)
        if not found:
            raise ClusterError("the cluster has no machine with a CPU to give: `ray start --num-cpus=1`")
        tasks = {asyncio.create_task(self._add(machine)) for machine in found}
        self._starting = tasks
        while tasks and not self._served:
            _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not self._served:
            raise ClusterError(next(iter(self._refused.values()), "no machine could load the model"))

    async def watch(self) -> None:
        """Look for machines that come and go, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            with suppress(Exception):  # Ray is busy: it looks again
                found = {machine.id: machine for machine in await asyncio.to_thread(machines, self._ray)}
                for name in [name for name in self._served if name not in found]:
                    await self._drop(name)
                known = {*self._served, *self._refused, *(self._adding)}
                for machine in [one for name, one in found.items() if name not in known]:
                    asyncio.create_task(self._add(machine))  # noqa: RUF006 - _adding has it
                for served in list(self._served.values()):
                    if not served.member.is_open and not self._restart_lock.locked():
                        await self._reopen(served)

    async def restart_all(self) -> None:
        """Restart each replica in turn, once what runs there is done; the others answer meanwhile."""
        async with self._restart_lock:
            for served in list(self._served.values()):
                self._notice(f"{served.machine.name} is restarted")
                served.member.is_open = False
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_S):
                        while served.member.running:
                            served.member.idle.clear()
                            await served.member.idle.wait()
                await self._keep_metrics(served)
                await asyncio.to_thread(_delete, served.app)
                served.app = self._app_name(served.machine)
                served.handle = await asyncio.to_thread(self._run, served.machine, served.app)
                await self._reopen(served)

    async def metrics(self) -> bytes:
        await asyncio.gather(*(self._read_metrics(served) for served in self._served.values()))
        return summed((served.text for served in self._served.values() if served.text), self._gone)

    async def stop(self) -> None:
        for served in list(self._served.values()):
            await asyncio.to_thread(_delete, served.app)

    def _app_name(self, machine: Machine) -> str:
        return f"localoss-{machine.name}-{secrets.token_hex(4)}"

    async def _add(self, machine: Machine) -> None:
        """Start a replica on `machine`, and give it requests once it has loaded the model."""
        self._adding = self._adding | {machine.id}
        try:
            app = self._app_name(machine)
            handle = await asyncio.to_thread(self._run, machine, app)
            loaded = await self._loaded(handle)
            fault = check_version(machine.name, loaded.version) or loaded.fault
            if fault:
                self._refused[machine.id] = fault if machine.name in fault else f"{machine.name}: {fault}"
                self._notice(f"left out: {self._refused[machine.id]}")
                await asyncio.to_thread(_delete, app)
                return
            for note in loaded.notes:
                self._notice(f"{machine.name}: {note}")
            member = Member(machine.name, loaded.at_once, lambda asked: self._ask(machine.id, asked))
            self._served[machine.id] = _Served(machine, app, handle, member)
            await self.members.add(member)
            self._notice(f"{machine.name} answers, {loaded.at_once} at a time")
        except Exception as error:
            self._refused[machine.id] = f"{machine.name}: {first_line(error)}"
            self._notice(f"left out: {self._refused[machine.id]}")
        finally:
            self._adding = self._adding - {machine.id}

    def _run(self, machine: Machine, app: str) -> Any:
        """Ray Serve's handle of a new replica, which may still be loading."""
        files = self._files[0] if self._files else None
        with _one_at_a_time:
            serve = _serve()
            made = serve.deployment(ServedMachine).options(
                name="replica",
                num_replicas=1,
                max_ongoing_requests=_MOST_AT_ONCE,
                graceful_shutdown_timeout_s=60,
                health_check_period_s=5,
                ray_actor_options={"num_cpus": 1, "resources": {f"node:{machine.name}": 0.001}},
            )
            bound = made.bind(self._source, self._loading, self._options, files, self._store_name)
            return serve.run(bound, name=app, route_prefix=None)

    async def _loaded(self, handle: Any) -> Loaded:
        found: Loaded = await asyncio.wait_for(handle.info.remote(), _LOAD_S)
        return found

    async def _reopen(self, served: _Served) -> None:
        """Give a replica requests again that was made anew."""
        with suppress(Exception):  # not yet
            loaded = await asyncio.wait_for(served.handle.info.remote(), _LOAD_S)
            if loaded.fault is None:
                if served.is_lost:
                    self._notice(f"{served.machine.name} answers again")
                served.is_lost = False
                self.members.began_anew(served.member)
                served.member.is_open = True
                await self.members.changed()

    async def _drop(self, name: str) -> None:
        served = self._served.pop(name)
        self._notice(f"{served.machine.name} is lost; the others answer")
        if served.text:
            self._gone.append(served.text)
        served.member.is_open = False
        await self.members.remove(served.member)
        await asyncio.to_thread(_delete, served.app)

    async def _ask(self, name: str, asked: Asked) -> AsyncIterator[Message]:
        """See Member.ask."""
        from ray.exceptions import RayError

        served = self._served.get(name)
        if served is None:
            raise Gone
        answer = served.handle.options(stream=True).answer.remote(asked)
        is_whole = False
        try:
            async for message in answer:
                yield message
            is_whole = True
        except (RayError, RuntimeError) as error:
            if isinstance(error, RayError) or "replica" in str(error).lower():
                self._note_lost(served)
            raise Gone from None
        finally:
            if not is_whole:
                answer.cancel()

    def _note_lost(self, served: _Served) -> None:
        """Ask a replica no more until it is made anew, see watch; one that is restarted is closed already."""
        if served.member.is_open:
            served.is_lost = True
            name = served.machine.name
            self._notice(f"the replica on {name} ended; others take its requests, and it is made anew")
        served.member.is_open = False

    async def _read_metrics(self, served: _Served) -> None:
        with suppress(Exception):  # the last ones count
            served.text = await asyncio.wait_for(served.handle.metrics.remote(), _METRICS_S)

    async def _keep_metrics(self, served: _Served) -> None:
        """What a replica has told stays, as it begins to count anew."""
        await self._read_metrics(served)
        if served.text:
            self._gone.append(served.text)
            self._gone = [summed([], self._gone)] if len(self._gone) > 8 else self._gone
            served.text = b""


_one_at_a_time = threading.Lock()  # Ray Serve's calls may not come from several threads at once


def _serve() -> Any:
    """The library, which else says on stderr whatever it does."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve


def _start_serve() -> None:
    with _one_at_a_time:
        _serve().start(proxy_location="Disabled")


def _delete(app: str) -> None:
    with suppress(Exception), _one_at_a_time:
        _serve().delete(app)


@dataclass(frozen=True)
class Endpoint:
    """Where a fleet answers. listening: told the base URL; what it gives is held until the end."""

    bound: Sequence[socket.socket]
    options: ServeOptions
    listening: Callable[[str], AbstractContextManager[None]]


def serve_on_cluster(
    address: str,
    model: str,
    loading: LoadOptions,
    replica: ReplicaOptions,
    endpoint: Endpoint,
    notice: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; SIGHUP restarts all replicas in turn. Raises: UsageError."""
    source = source_of(model)
    with joined(address, notice) as ray:
        fleet = Fleet(ray, source, loading, replica, notice)
        options = endpoint.options
        is_here = options.host in LOOPBACK
        hosts = {*LOOPBACK, options.host, *options.allowed_hosts} if is_here else None
        front = build_front(
            fleet.members, fleet.metrics, hosts=hosts, keys=options.keys, cors_origins=options.cors_origins
        )
        run_server(front, _Serving(front, fleet), endpoint.bound, options.host, endpoint.listening)


class _Serving:
    """The fleet as the server sees it: both live on one event loop."""

    batches: Batches | None = None  # files of requests are for `localoss batch --ray`

    def __init__(self, front: Front, fleet: Fleet) -> None:
        self._fleet = fleet
        self.refuse_waiting, self.cut_short = front.refuse_waiting, front.cut_short
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        await self._fleet.start()
        loop = asyncio.get_running_loop()
        self._tasks.add(loop.create_task(self._fleet.watch()))
        if hasattr(signal, "SIGHUP"):

            def restart() -> None:
                self._tasks.add(loop.create_task(self._fleet.restart_all()))

            loop.add_signal_handler(signal.SIGHUP, restart)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._fleet.stop()
