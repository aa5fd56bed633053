"""The models that a server can have: the one that it was started with, and all that are installed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localoss.engine.engine import Engine
from localoss.errors import LocalossError, UsageError
from localoss.hub.registry import canonical_name, installed_models, store_folder
from localoss.options import LoadOptions
from localoss.plan.machine import this_machine
from localoss.plan.memory import FITS, Plan, chosen
from quant.format.config import ModelConfig, read_config
from quant.format.layout import MANIFEST
from quant.format.manifest import Dtypes, read_manifest
from quant.sources.adapter import split_name

Load = Callable[[Path, LoadOptions], Engine]


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded. base: of an adapter, the name of the model beside whose weights it runs."""

    name: str
    folder: Path
    base: str | None = None

    @property
    def adapter(self) -> str | None:
        """What its sequences ask the engine for."""
        return self.name if self.base else None

    @property
    def loaded_as(self) -> str:
        """The name of the model that has to be in memory for it."""
        return self.base or self.name

    @property
    def config(self) -> ModelConfig:
        """Raises: QuantError."""
        return read_config(self.folder / "config.json")

    @property
    def dtypes(self) -> Dtypes:
        """Raises: QuantError."""
        return read_manifest(self.folder).dtypes

    @property
    def size_bytes(self) -> int:
        """Raises: QuantError."""
        return read_manifest(self.folder).total_bytes

    @property
    def digest(self) -> str:
        """A sha256 of all its files, by their own in the manifest. Raises: OSError."""
        name = f"+{self.name}" if self.base else ""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes() + name.encode()).hexdigest()

    @property
    def created(self) -> int:
        """When it was written, in seconds since 1970."""
        return int((self.folder / MANIFEST).stat().st_mtime)


class Catalogue:
    """Finds models by name, says what they take of memory, and loads them."""

    def __init__(
        self,
        first: Entry,
        options: LoadOptions,
        load: Load,
        aliases: Sequence[str] = (),
        has_others: bool = True,
    ) -> None:
        """first: the model that the server was started with, anywhere on this machine; `aliases` are its.

        options: how every model is loaded, the first one with their adapters. has_others: whether installed
        models are there, too. Raises: UsageError for an adapter with a name that is taken.
        """
        self.first, self.options, self.aliases = first, options, tuple(aliases)
        self._load, self._has_others = load, has_others
        names = dict.fromkeys(split_name(text)[0] for text in options.adapters)
        self._adapters = [Entry(name, first.folder, first.name) for name in names if name]
        self._adapter_bytes = 0  # known once it is loaded
        for name in names:
            if name in aliases or canonical_name(name) == canonical_name(first.name):
                raise UsageError(f"--adapter {name}=…: {name} is the model's own name; choose another")

    def entries(self) -> list[Entry]:
        """Every model that requests may name, the first one first. Looks at the disk."""
        installed = installed_models() if self._has_others else []
        taken = [self.first.name, *(entry.name for entry in self._adapters)]
        names = [name for name in installed if name not in taken]
        found = [Entry(name, store_folder(name)) for name in names]
        return [
            self.first,
            *self._adapters,
            *(entry for entry in found if (entry.folder / MANIFEST).exists()),
        ]

    def find(self, name: str) -> Entry | None:
        """The model that `name` means: Ollama's and a repository's names count, and aliases."""
        canonical = canonical_name(name)
        if name in self.aliases or canonical == canonical_name(self.first.name):
            return self.first
        return next((entry for entry in self.entries() if canonical == canonical_name(entry.name)), None)

    def load(self, entry: Entry, limit_bytes: int | None = None) -> Engine:
        """An engine. limit_bytes: of memory, less than what the options allow. Raises: LocalossError."""
        options = replace(self.options, memory_limit=limit_bytes or self.options.memory_limit)
        if entry is not self.first:
            return self._load(entry.folder, replace(options, adapters=()))
        engine = self._load(entry.folder, options)
        self._adapter_bytes = engine.adapter_bytes if options.adapters else 0
        return engine

    def limit_beside(self, entry: Entry, others: Sequence[tuple[Entry, int, int]]) -> int | None:
        """The memory for `entry` with which it fits beside `others`; None if it doesn't.

        others: those in memory, with their contexts' tokens and their slots. Where a device runs layers
        there is room for one.
        """
        if self.options.uses_a_device:
            return None
        try:
            plans = [
                replace(self._plan(one), context_tokens=size, slots=slots) for one, size, slots in others
            ]
            taken = sum(plan.total_bytes for plan in plans)
            limit_bytes = self._limit_bytes - taken
            fits = self._chosen(entry, limit_bytes).verdict(limit_bytes) == FITS
        except LocalossError:  # a damaged folder: loading it says so
            return None
        return limit_bytes if fits else None

    def context_tokens(self, entry: Entry) -> int:
        """The context that `entry` would get on its own. Raises: LocalossError."""
        return self._chosen(entry, self._limit_bytes).context_tokens

    @property
    def _limit_bytes(self) -> int:
        limit = self.options.memory_limit
        return this_machine().limit_bytes if limit is None else limit

    def _plan(self, entry: Entry) -> Plan:
        plan = Plan.of(entry.config, entry.dtypes, self.options)
        is_first = entry.loaded_as == self.first.name
        return replace(plan, adapter_bytes=self._adapter_bytes if is_first else 0)

    def _chosen(self, entry: Entry, limit_bytes: int) -> Plan:
        return chosen(self._plan(entry), max(limit_bytes, 0), self.options)
