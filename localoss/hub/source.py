"""A checkpoint on the hub as the converter's source: shards come when a file needs them, and go after it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from localoss.hub import schedule, transfer
from localoss.hub.client import Hub
from localoss.hub.errors import GoneError, WrongFileError
from localoss.hub.progress import Progress
from quant.encode_tensors import SLICE_BYTES, Part
from quant.errors import QuantError
from quant.format import disk
from quant.format.config import parse_config
from quant.format.json_file import parse_json
from quant.format.layout import CONFIG_FILES, TensorSpec
from quant.format.safetensors import (
    ADAPTER,
    INDEX_FILE,
    SINGLE_FILE,
    TensorFiles,
    TensorInfo,
    parse_weight_map,
    read_header,
)
from quant.format.writer import PART, Writer
from quant.sources import Source
from quant.sources.huggingface import HuggingFaceSource
from quant.sources.names import hf_names

REST = ".rest.safetensors"  # what is still needed of a shard that is gone


class PulledSource(HuggingFaceSource):
    """The checkpoint of `hub`, its shards in `folder` while they are needed, or for good with `keep_shards`.

    Reads the configuration, the index and the shards' headers, so that a checkpoint of another kind is told
    before its weights are fetched. Raises: DownloadError, QuantError.
    """

    def __init__(self, hub: Hub, folder: Path, keep_shards: bool, progress: Progress):
        self._hub, self._folder = hub, folder
        self._keep_shards, self._progress = keep_shards, progress
        small_files = _small_files(hub)
        config = parse_config(
            _json(hub, "config.json", small_files["config.json"]), f"{hub.repository}: config.json"
        )
        stored, shard_of = _tensors(hub)
        self._names = hf_names(shard_of, hub.repository)
        self.headers = {shard: self._renamed(header) for shard, header in stored.items()}
        self.shard_of = {self._names[name]: shard for name, shard in shard_of.items()}
        Source.__init__(self, TensorFiles(folder, once=True), hub.repository, config, small_files)
        self.revision = hub.commit
        for name, shard in self.shard_of.items():
            self.files.tensors[name] = (folder / shard, self.headers[shard][name])
        self.require_tensors()
        self._rests: dict[Path, set[str]] = {}  # file -> tensors that it keeps of a shard that is gone
        for rest in sorted(folder.glob(f"*{REST}")):
            self._take_rest(rest)
        if keep_shards:
            self._keep_small_files()
        self._needs = schedule.tensors_of_outputs(list(self.shard_of), config.layers)

    def _renamed(self, header: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
        return {self._names.get(name, name): info for name, info in header.items()}

    def _keep_small_files(self) -> None:
        """What makes a checkpoint of the shards, in a folder that any program reads. Raises: QuantError."""
        index = {INDEX_FILE: self._hub.small_file(INDEX_FILE)} if INDEX_FILE in self._hub.files else {}
        for name, content in (self.small_files | index).items():
            with disk.errors_told(self._folder / name):
                disk.write_file(self._folder / name, content)

    def stamps(self) -> dict[str, list[int]]:
        return {}  # the commit and the files' sha256 say more

    def fingerprint(self) -> str:
        fingerprint = hashlib.sha256(self.config_sha256.encode())
        for shard in sorted(self.headers):
            file = self._hub.file(shard)
            fingerprint.update(f"{shard} {file.sha256 or file.git_sha1}\n".encode())
        return fingerprint.hexdigest()

    # Before the first byte

    def steps(self, outputs: list[str]) -> list[schedule.Step]:
        """How the weight files among `outputs` come about."""
        needs = {output: self._needs[output] for output in outputs if output in self._needs}
        return schedule.schedule(needs, self.shard_of, self._kept, self._keep_shards)

    @property
    def _kept(self) -> set[str]:
        return set().union(*self._rests.values())

    def left_bytes(self, shard: str) -> int:
        """How much of `shard` is still to be fetched."""
        size = self._hub.file(shard).size
        if (self._folder / shard).exists() or self._cached(shard):
            return 0
        part = self._folder / (shard + PART)
        return max(0, size - part.stat().st_size) if part.exists() else size

    def peak_bytes(self, output_bytes: dict[str, int]) -> int:
        """The most bytes that writing the files `output_bytes` will take on the disk at a time."""
        steps = self.steps(list(output_bytes))
        shard_bytes = {step.shard: self.left_bytes(step.shard) for step in steps if step.shard}
        tensor_bytes = {
            name: info.size for tensors in self.headers.values() for name, info in tensors.items()
        }
        keeps = self._keep_shards
        small = sum(size for name, size in output_bytes.items() if name not in self._needs)
        return small + schedule.peak_bytes(steps, self._needs, output_bytes, shard_bytes, tensor_bytes, keeps)

    # While the model is written

    def arrange(self, outputs: list[str], flush: Callable[[], None]) -> Iterator[str]:
        steps = self.steps(outputs)
        files = [self._hub.file(step.shard) for step in steps if step.shard]
        self._progress.begin(files, {file.name: file.size - self.left_bytes(file.name) for file in files})
        yield from (output for output in outputs if output not in self._needs)
        left = [output for step in steps for output in step.outputs]
        for step in steps:
            if step.shard:
                self._bring(step.shard)
            for output in step.outputs:
                yield output
                left.remove(output)
                self._drop_rests({tensor for output in left for tensor in self._needs[output]}, flush)
            if step.shard and not self._keep_shards:
                flush()
                self._let_go(step.shard, step.keep)

    def _bring(self, shard: str) -> None:
        """Have `shard` on this disk, whole. Raises: DownloadError, QuantError."""
        file = self._hub.file(shard)

        def advance(done_bytes: int) -> None:
            self._progress.fetched(shard, done_bytes, file.size)

        if (self._folder / shard).exists():  # it was checked before it got that name
            advance(file.size)
            return
        cached = self._cached(shard)
        if cached and transfer.is_whole(cached, file, advance):
            self._progress.say(f"{shard}: Hugging Face's cache has it")
            for name, info in self.headers[shard].items():
                if name not in self._kept:
                    self.files.tensors[name] = (cached, info)
            return
        path = transfer.fetch(self._hub, file, self._folder, self._progress.say, advance)
        if self._renamed(read_header(path)[0]) != self.headers[shard]:  # it came without a checksum
            raise WrongFileError(f"{shard}: its header had come damaged; run the same command again to go on")

    def _cached(self, shard: str) -> Path | None:
        """Where Hugging Face's own cache has `shard`, if it does and the hub tells its sha256."""
        file = self._hub.file(shard)
        found = try_to_load_from_cache(self._hub.repository, shard, revision=self._hub.commit)
        if not isinstance(found, str) or not file.sha256 or Path(found).stat().st_size != file.size:
            return None
        return Path(found)

    def _let_go(self, shard: str, keep: list[str]) -> None:
        """Remove `shard`, but for what is still needed of it."""
        if not (self._folder / shard).exists():
            return  # it lies in Hugging Face's cache
        try:
            if keep:
                self._keep(shard, keep)
            self.files.close()  # Windows removes no open file
            disk.remove(self._folder / shard)
        except OSError as error:
            raise disk.disk_error(error, self._folder) from None

    def _drop_rests(self, later: set[str], flush: Callable[[], None]) -> None:
        """Remove rests that have nothing of `later`, once what they were needed for is written for good."""
        for rest in [rest for rest, names in self._rests.items() if not names & later]:
            flush()
            self.files.close()
            disk.try_to_remove(rest)
            del self._rests[rest]

    def _keep(self, shard: str, names: list[str]) -> None:
        """Copy tensors `names` of `shard` to its rest, which is synced before it gets its name."""
        rest = self._folder / f"{shard.removesuffix('.safetensors')}.{len(self._rests)}{REST}"
        infos = {name: self.headers[shard][name] for name in names}
        specs = {name: TensorSpec(info.dtype, info.shape) for name, info in infos.items()}

        def parts() -> Iterator[Part]:
            for name, info in infos.items():
                rows = max(1, SLICE_BYTES * info.shape[0] // max(info.size, 1))
                for start in range(0, info.shape[0], rows):
                    yield name, self.files.read_rows(name, start, min(start + rows, info.shape[0]))

        with Writer(lambda size: None) as writer:
            writer.write_tensors(rest, specs, parts())
        self._take_rest(rest)

    def _take_rest(self, rest: Path) -> None:
        """From now on, read what file `rest` has from there."""
        found = read_header(rest)[0]
        for name, info in found.items():
            self.files.tensors[name] = (rest, info)
        self._rests[rest] = set(found)


def _small_files(hub: Hub) -> dict[str, bytes]:
    """The configuration's files. Raises: DownloadError."""
    if "config.json" not in hub.files:
        if any(name.startswith(ADAPTER) for name in hub.files):
            raise GoneError(f"{hub.repository} is a LoRA adapter, not a model; merge it into its base model")
        ggufs = [name for name in hub.files if name.endswith(".gguf")]
        hint = "download its .gguf and give it with --from" if ggufs else "is it a model for transformers?"
        raise GoneError(f"{hub.repository} has no config.json; {hint}")
    return {name: hub.small_file(name) for name in CONFIG_FILES if name in hub.files}


def _json(hub: Hub, name: str, content: bytes) -> object:
    try:
        return parse_json(content)
    except ValueError as error:
        raise QuantError(f"{hub.repository}: {name} is not JSON ({error})") from None


def _tensors(hub: Hub) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, str]]:
    """The shards' headers by name, and the shard of each tensor: those of the index, else all there are.

    Raises: DownloadError, QuantError.
    """
    if INDEX_FILE not in hub.files:
        return _tensors_without_index(hub)
    where = Path(f"{hub.repository}/{INDEX_FILE}")
    shard_of = parse_weight_map(where, _json(hub, INDEX_FILE, hub.small_file(INDEX_FILE)))
    headers = {shard: hub.header(shard) for shard in sorted(set(shard_of.values()))}
    for name, shard in shard_of.items():
        if name not in headers[shard]:
            raise QuantError(f"{where}: {name} is not in {shard} though it says so; tell the model's owner")
    return headers, shard_of


def _tensors_without_index(hub: Hub) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, str]]:
    """Of model.safetensors alone if it is there, else of all shards but adapters."""
    shards = [name for name in sorted(hub.files) if name.endswith(".safetensors") and "/" not in name]
    shards = [SINGLE_FILE] if SINGLE_FILE in shards else [n for n in shards if not n.startswith(ADAPTER)]
    if not shards:
        raise GoneError(f"{hub.repository} has neither {INDEX_FILE} nor {SINGLE_FILE}; nothing to pull")
    headers = {shard: hub.header(shard) for shard in shards}
    shard_of: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header:
            if name in shard_of:
                raise QuantError(
                    f"{hub.repository}: tensor {name} is in {shard_of[name]} and in {shard}, and there is no "
                    f"{INDEX_FILE} that says which one is meant; tell the model's owner"
                )
            shard_of[name] = shard
    return headers, shard_of
