"""The table: what is measured, how each row is judged, and its target."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measure import ROOT, Measurement

PEER_MEMORY = 1.8  # llama.cpp's peak memory over the size of its file: it repacks most weights into a copy


@dataclass(frozen=True)
class Sizes:
    """Tokens of each kind of run."""

    short: int = 32  # the prompt before decoding
    gen: int = 64
    prompt: int = 512  # of prefill, and of its last part after a long context
    deep: int = 4096
    context: int = 8192
    first: int = 8  # the prompt before the first token


QUICK = Sizes(short=16, gen=8, prompt=64, deep=256, context=512)


@dataclass(frozen=True)
class Setup:
    """What to measure, and with what. None: rows that need it are left out."""

    model: Path
    threads: int
    sizes: Sizes
    int4: Path | None = None
    small: Path | None = None
    gguf: Path | None = None
    peer_python: str | None = None
    peer_tools: Path | None = None
    peers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # others: a name and a command each


def measurements(setup: Setup) -> dict[str, Measurement]:
    """By name, those that `setup` can do, in the order in which a round takes them."""
    s, found = setup.sizes, []

    def ours(name: str, model: Path | None, prompt: int, gen: int, *more: str, **how: Any) -> None:
        if model:
            command = (sys.executable, "-m", "localoss", "bench", str(model), "--prompt-tokens", str(prompt))
            command += ("--gen-tokens", str(gen), "--threads", str(setup.threads), *more, "--json")
            found.append(Measurement(name, command, model, **how))

    def peer(name: str, prompt: int, gen: int, **how: Any) -> None:
        if setup.gguf and setup.peer_python and setup.peer_tools:
            command = (setup.peer_python, str(setup.peer_tools / "peer_llamacpp.py"), str(setup.gguf))
            command += ("--prompt-tokens", str(prompt), "--gen-tokens", str(gen))
            command += ("--threads", str(setup.threads))
            needed = int(PEER_MEMORY * setup.gguf.stat().st_size)
            found.append(Measurement(name, command, setup.gguf, needs_bytes=needed, **how))
        for label, start in setup.peers if setup.gguf else ():
            command = (*start, str(setup.gguf), "--prompt-tokens", str(prompt), "--gen-tokens", str(gen))
            command += ("--threads", str(setup.threads))
            found.append(Measurement(f"{name}@{label}", command, setup.gguf, **how))

    def first_token(name: str, **how: Any) -> None:
        command = (sys.executable, str(ROOT / "benchmarks" / "first_token.py"), str(setup.model))
        command += ("--tokens", str(s.first), "--threads", str(setup.threads))
        found.append(Measurement(name, command, setup.model, **how))

    ours("decode", setup.model, s.short, s.gen)
    peer("peer-decode", s.short, s.gen)
    ours("decode-int4", setup.int4, s.short, s.gen)
    if setup.peer_tools:
        largest = max(setup.model.iterdir(), key=lambda file: file.stat().st_size)
        tool = str(setup.peer_tools / "read_bandwidth.py")
        command = (sys.executable, tool, "--threads", str(setup.threads), "--file", str(largest))
        found.append(Measurement("read-bandwidth", command, largest))
    ours("prefill", setup.model, s.prompt, 8)
    peer("peer-prefill", s.prompt, 8)
    deep = (sys.executable, str(ROOT / "benchmarks" / "deep.py"), str(setup.model), "--threads")
    deep += (
        str(setup.threads),
        *(f"--{name}={getattr(s, name)}" for name in ("short", "deep", "prompt", "gen")),
    )
    found.append(Measurement("deep", deep, setup.model))
    peer("peer-deep", s.deep, s.gen, most=1)
    ours("profile", setup.small, s.short, s.gen, "--profile")
    first_token("first-token")
    first_token("compiling", cold_kernels=True, most=1)
    ours("full", setup.model, s.prompt, 8, "--depth", str(s.context - s.prompt - 9), most=1)
    return {measurement.name: measurement for measurement in found}


PEER = "llama.cpp"  # that of --peer-python; others are measurements by the name of its own, @ and theirs


class Results:
    """Runs by measurement, each what measure.take gave. A peer's name stands for the best of all peers."""

    def __init__(self, runs: dict[str, list[dict[str, Any]]]):
        self._runs = runs

    def has(self, name: str) -> bool:
        return bool(self._all(name))

    def values(self, name: str, field: str) -> list[Any]:
        return [run[field] for run in self._runs.get(name, ()) if run.get(field) is not None]

    def best(self, name: str, field: str, choose: Callable[..., str] = max) -> tuple[str, float]:
        """The peer with the highest median of `field`, or with the lowest one for min, and that."""
        found = {
            each.partition("@")[2] or PEER: self.median(each, field)
            for each in self._all(name)
            if self.values(each, field)
        }
        label = choose(found, key=lambda one: found[one])
        return label, found[label]

    def _all(self, name: str) -> list[str]:
        """The measurements that `name` stands for, of which there are runs."""
        return [each for each, runs in self._runs.items() if runs and each.partition("@")[0] == name]

    def median(self, name: str, field: str) -> float:
        return float(median(self.values(name, field)))


@dataclass(frozen=True)
class Verdict:
    """A row's result. ratio: ours over what stands beside it."""

    ours: str
    beside: str
    ratio: float
    met: bool
    note: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    target: str
    needs: tuple[str, ...]
    judge: Callable[[Results], Verdict]
    also: tuple[str, ...] = ()  # measured too, but the row stands without them


DECODE, PREFILL = "decode_tokens_per_s", "prefill_tokens_per_s"


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.2f} tokens/s"


def _against_peer(r: Results, ours: str, peer: str, field: str, least: float) -> Verdict:
    mine, (label, theirs) = r.median(ours, field), r.best(peer, field)
    return Verdict(_speed(mine), f"{label}: {_speed(theirs)}", mine / theirs, mine >= least * theirs)


def _decode(r: Results) -> Verdict:
    verdict = _against_peer(r, "decode", "peer-decode", DECODE, 1.5)
    share = r.median("decode", "bandwidth_share")
    note = f"{share:.0%} of the read bandwidth"
    return Verdict(verdict.ours, verdict.beside, verdict.ratio, verdict.met or share >= 0.95, note)


def _share(r: Results) -> Verdict:
    ours = r.median("decode", DECODE) * r.median("decode", "decode_bytes_per_token")
    limit, share = r.median("decode", "read_bandwidth_bytes_per_s"), r.median("decode", "bandwidth_share")
    note = "the loop and the tokens take turns in one process; the ratio is the median of its groups"
    if r.has("read-bandwidth"):
        tool = r.median("read-bandwidth", "median_bytes_per_s")
        note += f"; by itself a loop read {tool / 1e9:.1f} GB/s"
    beside = f"read loop: {limit / 1e9:.1f} GB/s"
    return Verdict(f"{ours / 1e9:.1f} GB/s", beside, share, share >= 0.9, note)


def _deep_decode(r: Results) -> Verdict:
    deep, short = r.median("deep", DECODE), r.median("deep", "short_decode_tokens_per_s")
    ratio, note = r.median("deep", "decode_ratio"), "both in turns in one process"
    if r.values("peer-deep", DECODE) and r.values("peer-decode", DECODE):
        peer_deep, peer_short = r.median("peer-deep", DECODE), r.median("peer-decode", DECODE)
        note += f"; llama.cpp: {_speed(peer_deep)} and {_speed(peer_short)}, {peer_deep / peer_short:.0%}"
    return Verdict(_speed(deep), f"after a short prompt: {_speed(short)}", ratio, ratio >= 0.9, note)


def _deep_prefill(r: Results) -> Verdict:
    last, first = r.median("deep", PREFILL), r.median("deep", "first_prefill_tokens_per_s")
    ratio, note = r.median("deep", "prefill_ratio"), "one after the other in one process"
    return Verdict(_speed(last), f"the first tokens: {_speed(first)}", ratio, ratio >= 0.8, note)


def _python(r: Results) -> Verdict:
    between = median(profile["python"] for profile in r.values("profile", "decode_profile_s"))
    calling, total = r.median("profile", "calling_s"), 1 / r.median("profile", DECODE)
    python = max(between, calling)
    note = (
        f"{1000 * between:.2f} ms between kernels; {1000 * calling:.2f} ms for a token whose kernels have "
        "next to nothing to do, the cost of calling them included"
    )
    beside = f"the whole token: {1000 * total:.1f} ms"
    return Verdict(f"{1000 * python:.2f} ms", beside, python / total, python <= 1e-3, note)


def _first_token(r: Results) -> Verdict:
    ours, (label, theirs) = r.median("first-token", "first_output_s"), r.best("peer-decode", "load_s", min)
    late = sorted({name for run in r.values("first-token", "late") for name in run})
    note = (
        f"compiled after loading: {', '.join(late)}"
        if late
        else f"{label}'s is its loading alone, to which the prompt comes"
    )
    return Verdict(f"{ours:.2f} s", f"{label}: {theirs:.1f} s", ours / theirs, ours <= 3, note)


def _compiling(r: Results) -> Verdict:
    cold, warm = r.median("compiling", "load_s"), r.median("first-token", "load_s")
    took = cold - warm
    note = f"{r.median('compiling', 'compiled'):.0f} functions"
    return Verdict(f"{took:.1f} s", f"loading, kernels cached: {warm:.2f} s", took / warm, took <= 45, note)


def _scratch(r: Results) -> Verdict:
    run = {
        field: r.median("prefill", field) for field in ("scratch_bytes", "kv_cache_bytes", "weights_bytes")
    }
    beyond = r.median("prefill", "anonymous_bytes") - run["kv_cache_bytes"]
    data = run["weights_bytes"] + run["kv_cache_bytes"]
    note = f"all memory that is no file's, Python included; of it {run['scratch_bytes'] / 1e6:.0f} MB buffers"
    beside = f"weights and KV cache: {data / 1e9:.2f} GB"
    return Verdict(f"{beyond / 1e6:.0f} MB", beside, beyond / data, beyond <= 250e6, note)


def _peak_rss(r: Results) -> Verdict:
    ours, (label, theirs) = r.median("full", "peak_rss_bytes"), r.best("peer-decode", "max_rss_bytes", min)
    bound = r.median("full", "weights_bytes") + r.median("full", "kv_cache_bytes") + 0.4e9
    note = f"the target here: {bound / 1e9:.2f} GB; {label}'s with a short context, which takes less"
    return Verdict(
        f"{ours / 1e9:.2f} GB", f"{label}: {theirs / 1e9:.2f} GB", ours / theirs, ours <= bound, note
    )


def table(s: Sizes) -> list[Row]:
    """All rows, for runs of these sizes."""
    after, last = f"{s.gen} tokens after a prompt of {s.short}", f"{s.deep - s.prompt:,} to {s.deep:,}"
    peer, limit = ("peer-decode",), ("read-bandwidth",)
    target = "≥ 1.5 × the best peer, or ≥ 95 % of the read bandwidth"
    int4_target, rss_target = "≥ 1.9 × the best peer", "≤ weights + KV cache + 0.4 GB"

    def int4(r: Results) -> Verdict:
        return _against_peer(r, "decode-int4", "peer-decode", DECODE, 1.9)

    def prefill(r: Results) -> Verdict:
        return _against_peer(r, "prefill", "peer-prefill", PREFILL, 3.5)

    return [
        Row("decode", f"decode, {after}, int8", target, ("decode", *peer), _decode, limit),
        Row("decode-int4", f"decode, {after}, int4", int4_target, ("decode-int4", *peer), int4),
        Row("bandwidth", "decode's bytes over the read bandwidth", "≥ 90 %", ("decode",), _share, limit),
        Row(
            "prefill",
            f"prefill, {s.prompt} tokens",
            "≥ 3.5 × the best peer",
            ("prefill", "peer-prefill"),
            prefill,
        ),
        Row(
            "deep-decode",
            f"decode after {s.deep:,} tokens, against after {s.short}",
            "≥ 90 %",
            ("decode", "deep"),
            _deep_decode,
            (*peer, "peer-deep"),
        ),
        Row(
            "deep-prefill",
            f"prefill of tokens {last}, against the first {s.prompt}",
            "≥ 80 %",
            ("prefill", "deep"),
            _deep_prefill,
        ),
        Row("python", "Python's share of a decoded token, small model", "≤ 1 ms", ("profile",), _python),
        Row(
            "first-token",
            f"start to first token, raw prompt of {s.first}",
            "≤ 3 s",
            ("first-token", *peer),
            _first_token,
        ),
        Row("compiling", "compiling, once per machine", "≤ 45 s", ("compiling", "first-token"), _compiling),
        Row("scratch", f"scratch memory, prefill of {s.prompt}", "≤ 250 MB", ("prefill",), _scratch),
        Row("rss", f"peak memory at {s.context:,} tokens", rss_target, ("full", *peer), _peak_rss),
    ]
