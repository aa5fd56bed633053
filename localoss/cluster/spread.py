"""A model whose layers lie on several machines of a Ray cluster, as an engine like any other.

The machine that asks has the vocabulary and all conversations; the layers are actors. A machine that is lost
gives its layers to those that are left, and those that came.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss.cluster.batch import serve_files
from localoss.cluster.joining import ClusterError, Machine, check_version, first_line, join, machines, on
from localoss.cluster.models import Source, source_of
from localoss.cluster.part_machine import PartMachine
from localoss.cluster.placement import Room, Share, place
from localoss.cluster.predict import vocabulary_bytes
from localoss.cluster.remote_layers import MachineLost, Part, RemoteLayers
from localoss.errors import UsageError
from localoss.options import MOST_SLOTS, Listener, LoadOptions
from localoss.plan.memory import PROGRAM_BYTES, USUAL_CONTEXTS, Plan
from quant.format.config import read_config
from quant.format.manifest import read_manifest

if TYPE_CHECKING:
    from localoss.engine.engine import Engine

PASS_TOKENS = 1024  # of a prompt in a pass: eight chunks, which follow one another through the machines
_OFFERS_S = 120.0  # for a machine to say what it has
_ALIVE_S = 5.0
_MOST_ASKED = 64  # machines that are asked what they have; few of them get layers
_GONE = "it doesn't answer any more"


class RayLink:
    """A PartMachine behind Ray."""

    def __init__(self, ray: Any, actor: Any, machine: Machine) -> None:
        self._ray, self._actor, self.machine = ray, actor, machine
        self.name = machine.name

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._actor, method).remote(*arguments)

    def is_ready(self, promise: Any, within_s: float) -> bool:
        return bool(self._ray.wait([promise], timeout=within_s)[0])

    def result(self, promise: Any) -> Any:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            return self._ray.get(promise)
        except RayTaskError as error:
            cause = error.cause
            if cause is not None and not isinstance(cause, RayError):
                raise RuntimeError(f"{self.name}: {type(cause).__name__}: {cause}") from None
            raise MachineLost(_GONE, [self.name]) from None
        except RayActorError:
            raise MachineLost(_GONE, [self.name]) from None
        except RayError as error:
            raise MachineLost(first_line(error), [self.name]) from None

    def is_alive(self) -> bool:
        """A machine that is busy counts as alive: it answers later."""
        from ray.exceptions import RayError

        promise = self.call("ping")
        if not self.is_ready(promise, _ALIVE_S):
            return True
        try:
            return bool(self._ray.get(promise))
        except RayError:
            return False

    def close(self) -> None:
        try:
            self._ray.kill(self._actor)
        except Exception:  # it is gone already, and Ray with it, perhaps
            return


class Spread:
    """Places a model's layers on the cluster's machines, as often as that is needed."""

    def __init__(self, ray: Any, source: Source, options: LoadOptions, notice: Callable[[str], None]) -> None:
        assert source.folder
        self._ray, self._source, self._options, self._notice = ray, source, options, notice
        self.folder = Path(source.folder)
        self.config = read_config(self.folder / "config.json")
        self.dtypes = read_manifest(self.folder).dtypes
        self._links: dict[str, RayLink] = {}  # by name, of the machines that are there
        self._lost: set[str] = set()  # by name: what was lost once isn't counted on again
        self._files = serve_files(ray, source)
        self.plan, self._is_sized = Plan.of(self.config, self.dtypes, options), False

    def layers(self) -> RemoteLayers:
        """All layers, loaded. Raises: UsageError if they can't be."""
        links, rooms = self._offers()
        if not self._is_sized:  # later, sequences are there that have their size
            self.plan, self._is_sized = self._sized(rooms), True
        while True:
            shares = place(self.plan, rooms)
            faults = self._load(links, shares)
            if not faults:
                break
            for number in sorted(faults, reverse=True):
                self._notice(f"left out: {links[number].name}: {faults[number]}")
                self._lost.add(links[number].name)
                self._links.pop(links[number].name).close()
                links.pop(number)
                rooms.pop(number)
            if not links:
                raise ClusterError(next(iter(faults.values())))
        used = {links[share.room].name for share in shares}
        for name in self._links.keys() - used:  # others may want its CPU
            self._links.pop(name).close()
        parts = [Part(links[share.room], share.first, share.count) for share in shares]
        self._notice(_placed(parts, shares))
        return RemoteLayers(self.config, parts, self.again)

    def again(self, lost: Sequence[str]) -> RemoteLayers | None:
        """All layers on the machines that are left; None if these don't do."""
        self._lost |= set(lost)
        try:
            return self.layers()
        except UsageError as error:
            self._notice(f"{error}; this machine runs all layers")
            return None

    def _offers(self) -> tuple[list[RayLink], list[Room]]:
        """An actor on each machine, and what it has. Raises: ClusterError."""
        for name in self._lost & self._links.keys():
            self._links.pop(name).close()
        asked = []
        for machine in machines(self._ray)[:_MOST_ASKED]:
            if machine.name not in self._lost:
                link = self._links.get(machine.name) or self._link(machine)
                asked.append((link, link.call("offer", machine.name)))
        here = self._ray.get_runtime_context().get_node_id()
        links, rooms = [], []
        for link, promise in asked:
            fault = self._fault(link, promise)
            if fault:
                self._notice(f"left out: {fault}")
                self._lost.add(link.name)
                link.close()
                continue
            self._links[link.name] = link
            links.append(link)
            room = link.result(promise).room
            rooms.append(self._beside(room) if link.machine.id == here else room)
        if not links:
            raise ClusterError("no machine of the cluster can take layers")
        return links, rooms

    def _link(self, machine: Machine) -> RayLink:
        files = self._files[0] if self._files else None
        actor = on(self._ray, PartMachine, machine, num_cpus=1).remote(
            self._source, files, self._options.memory_limit
        )
        return RayLink(self._ray, actor, machine)

    def _fault(self, link: RayLink, promise: Any) -> str | None:
        """Why a machine can't be used, that was asked for its offer; None if it can."""
        if not link.is_ready(promise, _OFFERS_S):
            return f"{link.name}: it has no CPU free: `ray status` says who has them"
        try:
            return check_version(link.name, link.result(promise).version)
        except (MachineLost, RuntimeError) as error:
            return f"{link.name}: {error}"

    def _beside(self, room: Room) -> Room:
        """What is left on the machine that has the vocabulary and the conversations, too."""
        taken = vocabulary_bytes(self.plan) + self.plan.own["scratch"] + PROGRAM_BYTES
        return replace(
            room,
            limit_bytes=max(room.limit_bytes - taken, 0),
            cache_limit_bytes=max(room.cache_limit_bytes - taken, 0),
        )

    def _sized(self, rooms: Sequence[Room]) -> Plan:
        """The plan with the slots and the context that were asked for, or as many as all memory is for."""
        options, most = self._options, self.config.context
        context = options.context_tokens or min(max(USUAL_CONTEXTS[-1], options.prompt_tokens), most)
        plan = replace(self.plan, context_tokens=context)
        for slots in [options.slots] if options.slots else range(MOST_SLOTS, 0, -1):
            plan = replace(plan, slots=slots)
            try:
                if slots == 1 or not any(share.streams for share in place(plan, rooms)):
                    break
            except UsageError:
                continue
        return plan

    def _load(self, links: Sequence[RayLink], shares: Sequence[Share]) -> dict[int, str]:
        """Have the machines load their shares, all at once. Gives what went wrong, by room."""
        asked = [
            (share, links[share.room].call("load", share.first, share.plan, self._options.threads))
            for share in shares
        ]
        faults = {}
        for share, promise in asked:
            try:
                loaded = links[share.room].result(promise)
                if loaded.fault:
                    faults[share.room] = loaded.fault
            except MachineLost as error:
                faults[share.room] = str(error)
        return faults


def _placed(parts: Sequence[Part], shares: Sequence[Share]) -> str:
    told = ", ".join(
        f"{part.count} on {part.link.name}" + (" (some experts on its disk)" if share.streams else "")
        for part, share in zip(parts, shares, strict=True)
    )
    return f"layers: {told}"


def load_spread(name: str, options: LoadOptions, listener: Listener) -> "tuple[Path, Engine]":
    """The model's folder here, and an engine whose layers are on the machines of the cluster options.ray.

    Raises: UsageError.
    """
    from localoss import settings
    from localoss.engine.loader import usable_threads

    settings.let_threads_sleep()
    from localoss.engine.engine import Engine
    from localoss.engine.warmup import KernelForm, warm_up
    from localoss.model.weights import load_weights

    source = source_of(name)
    if source.folder is None:
        raise UsageError(
            f"{name} isn't on this machine, whose disk the others' layers come from: pull it here"
        )
    options = replace(options, chunk_tokens=max(options.chunk_tokens, PASS_TOKENS))
    config = read_config(Path(source.folder) / "config.json")
    if options.context_tokens and options.context_tokens > config.context:
        raise UsageError(
            f"context_tokens is {options.context_tokens:,}; this model takes 1 to {config.context:,}"
        )
    threads = usable_threads(options.threads, config)
    assert options.ray is not None
    ray = join(options.ray, listener.notice)
    spread = Spread(ray, source, options, listener.notice)
    stack = spread.layers()
    sized = replace(
        options, threads=threads, context_tokens=spread.plan.context_tokens, slots=spread.plan.slots
    )
    warm_up(KernelForm(options.kv_dtype, options.is_exact), threads, listener.compiling)
    weights = load_weights(spread.folder, spread.config, spread.dtypes)
    engine = Engine(spread.config, spread.dtypes, weights, sized, [stack], listener)
    return spread.folder, engine
