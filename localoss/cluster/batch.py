"""A batch on the machines of a Ray cluster: they take lines as fast as they answer them, the driver writes.

Ray says which machines there are, makes an actor anew whose process died, and asks it once more. What is left
to do here is to give a lost machine's lines to the others, and to ask machines that come.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from localoss.cluster.joining import (
    ClusterError,
    Machine,
    check_version,
    first_line,
    joined,
    machines,
    on,
)
from localoss.cluster.models import HeadFiles, Source, source_of
from localoss.cluster.worker import BatchMachine, Loaded
from localoss.options import LoadOptions
from localoss.server.batches.answerer import Answering
from localoss.server.batches.journal import Request
from localoss.server.batches.running import Lines, Lost, Progress, Work

_LOOK_S = 2.0  # how often it looks for machines that came
_MOST_AT_ONCE = 256  # calls that an actor takes side by side
_RETRIES = 2  # of a line by Ray, on the same machine, before another one gets it


def answer_on_cluster(
    address: str,
    work: Work,
    how: Answering,
    loading: LoadOptions,
    told: Callable[[Progress], None],
    notice: Callable[[str], None],
) -> Progress:
    """Answer what of `work` isn't answered, on the cluster at `address`.

    told: how far it is, after every line. notice: told of machines that come, go or can't be used.
    Raises: UsageError.
    """
    source = source_of(how.model)
    how = replace(how, served=source.served)  # a copy's folder may have another name
    with joined(address, notice) as ray:
        lines = Lines(work.requests(), work.journal, told, work.total)
        return asyncio.run(_Run(ray, source, how, loading, notice).run(lines))


def serve_files(ray: Any, source: Source) -> tuple[str, Any] | None:
    """An actor on this machine that has the model's files for others, its name first; None without a model.

    It is there for as long as its handle is kept.
    """
    if source.folder is None:
        return None
    here, name = ray.get_runtime_context().get_node_id(), f"localoss-files-{secrets.token_hex(8)}"
    actor = on(ray, HeadFiles, Machine(here, "", 0), num_cpus=0, max_restarts=-1, name=name)
    return name, actor.remote(source.folder)


class _Run:
    def __init__(
        self, ray: Any, source: Source, how: Answering, loading: LoadOptions, notice: Callable[[str], None]
    ) -> None:
        self._ray, self._source, self._how, self._loading = ray, source, how, loading
        self._notice = notice
        self._refused: dict[str, str] = {}  # by machine, why it can't be used
        self._files: str | None = None  # an actor's name: a handle would lie in Ray's object store

    async def run(self, lines: Lines) -> Progress:
        """Raises: UsageError if no machine can be used, or the files can't be written."""
        files = serve_files(self._ray, self._source)
        self._files = files[0] if files else None
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while not lines.is_done:
                for machine in await asyncio.to_thread(machines, self._ray):
                    if machine.id not in tasks and machine.id not in self._refused:
                        tasks[machine.id] = asyncio.create_task(self._use(machine, lines))
                if not tasks:
                    self._check_anyone()
                await asyncio.wait(
                    [*tasks.values(), asyncio.create_task(asyncio.sleep(_LOOK_S))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for name in [name for name, task in tasks.items() if task.done()]:
                    tasks.pop(name).result()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return lines.progress

    def _check_anyone(self) -> None:
        if self._refused:
            raise ClusterError(next(iter(self._refused.values())))
        raise ClusterError("the cluster has no machine with a CPU to give: `ray start --num-cpus=1` or more")

    async def _use(self, machine: Machine, lines: Lines) -> None:
        """Have a machine answer lines until all are done or it is lost. Raises: UsageError."""
        from ray.exceptions import RayError

        options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": _RETRIES}
        actor = on(self._ray, BatchMachine, machine, max_concurrency=_MOST_AT_ONCE, **options).remote(
            self._source, self._how, self._loading, self._files
        )

        async def ask(request: Request) -> tuple[int, dict[str, Any]]:
            try:
                answered: tuple[int, dict[str, Any]] = await actor.ask.remote(request)
                return answered
            except RayError as error:
                raise Lost(first_line(error)) from None

        try:
            loaded = await actor.load.remote()
            if fault := self._fault(machine, loaded):
                self._refused[machine.id] = fault
                self._notice(f"left out: {fault}")
                return
            for note in loaded.notes:
                self._notice(f"{machine.name}: {note}")
            async with asyncio.TaskGroup() as group:
                for _ in range(loaded.at_once):
                    group.create_task(lines.work(ask, machine.name))
        except RayError as error:
            self._notice(f"{machine.name} is lost: {first_line(error)}")
        except ExceptionGroup as errors:
            lost, others = errors.split(Lost)
            if others:
                raise others.exceptions[0] from None
            assert lost
            self._notice(f"{machine.name} is lost, others take its lines: {lost.exceptions[0]}")
        finally:
            self._ray.kill(actor)

    def _fault(self, machine: Machine, loaded: Loaded) -> str | None:
        if wrong := check_version(machine.name, loaded.version):
            return wrong
        return f"{machine.name}: {loaded.fault}" if loaded.fault else None
