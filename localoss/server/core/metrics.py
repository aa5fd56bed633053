"""What /metrics tells Prometheus."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from localoss.server.core.answering import Usage
    from localoss.server.core.rates import Rates
    from localoss.server.core.scheduler import Scheduler

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._schedulers: set[Scheduler] = set()  # of the models in memory
        self._rates: Rates | None = None
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "localoss_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._tokens = Counter("localoss_tokens", "Tokens by kind.", ["kind"], registry=self._registry)
        self.key_requests = Counter(
            "localoss_key_requests",
            "Requests by the name of their key and status.",
            ["key", "status"],
            registry=self._registry,
        )
        self._key_tokens = Counter(
            "localoss_key_tokens",
            "Tokens by the name of the key that asked, and kind.",
            ["key", "kind"],
            registry=self._registry,
        )
        self._prefill_s = Histogram(
            "localoss_prefill_seconds",
            "From the start of a prompt to the first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._speed = Histogram(
            "localoss_decode_tokens_per_second",
            "Speed of an answer after its first token.",
            buckets=_SPEEDS,
            registry=self._registry,
        )
        waiting = Gauge("localoss_requests_waiting", "Answers that wait.", registry=self._registry)
        waiting.set_function(lambda: sum(one.waiting for one in list(self._schedulers)))
        running = Gauge("localoss_requests_running", "Answers in the making.", registry=self._registry)
        running.set_function(lambda: sum(one.running for one in list(self._schedulers)))
        self._spans = {
            name: Histogram(f"localoss_{name}_seconds", told, buckets=buckets, registry=self._registry)
            for name, told, buckets in (
                ("queue", "From a request to the start of its answer.", _SECONDS),
                ("first_token", "From a request to its first token.", _SECONDS),
                ("between_tokens", "From a token of an answer to the next.", _SHORT_SECONDS),
                ("step", "A step of all answers together.", _SHORT_SECONDS),
            )
        }

    def watch_keys(self, rates: "Rates") -> None:
        """Tell what keys have had in the last minute, and count their tokens there."""
        self._rates = rates
        self._registry.register(_LastMinute(rates))

    def watch(self, scheduler: "Scheduler") -> None:
        """Count what waits and runs there, too."""
        self._schedulers.add(scheduler)
        scheduler.observe = lambda name, seconds: self._spans[name].observe(seconds)

    def forget(self, scheduler: "Scheduler") -> None:
        self._schedulers.discard(scheduler)

    def note(self, usage: "Usage", prefill_s: float, decode_s: float, key: str) -> None:
        """Count an answer that is done, which was asked with the key of that name."""
        for kind, count in (
            ("prompt", usage.prompt),
            ("prompt_cached", usage.cached),
            ("completion", usage.completion),
            ("reasoning", usage.reasoning),
        ):
            self._tokens.labels(kind).inc(count)
            if key:
                self._key_tokens.labels(key, kind).inc(count)
        if self._rates:
            self._rates.note(key, tokens=usage.prompt - usage.cached + usage.completion)
        self._prefill_s.observe(prefill_s)
        if decode_s > 0:
            self._speed.observe((usage.completion - 1) / decode_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _LastMinute(Collector):
    """What keys have had in the last minute."""

    def __init__(self, rates: "Rates") -> None:
        self._rates = rates

    def collect(self) -> Iterable[Metric]:
        told = "in the last minute, by the name of the key that asked."
        requests = GaugeMetricFamily("localoss_key_requests_per_minute", f"Requests {told}", labels=["key"])
        tokens = GaugeMetricFamily("localoss_key_tokens_per_minute", f"Tokens {told}", labels=["key"])
        for key in self._rates.keys():  # noqa: SIM118
            for family, count in zip((requests, tokens), self._rates.last_minute(key), strict=True):
                family.add_metric([key], count)
        return [requests, tokens]


_Key = tuple[str, tuple[tuple[str, str], ...]]


def summed(texts: Iterable[bytes], gone: Iterable[bytes] = ()) -> bytes:
    """What several servers tell Prometheus, as one: samples of the same name and labels added up.

    gone: the last that servers told which are no more: their counts stay, what they had running doesn't.
    """
    values: dict[_Key, float] = {}
    families: dict[str, tuple[str, str, dict[_Key, None]]] = {}
    for text, is_gone in [*((text, False) for text in texts), *((text, True) for text in gone)]:
        for family in text_string_to_metric_families(text.decode()):
            if family.name.endswith("_created"):  # when it began, which adds up to nothing
                continue
            _, _, keys = families.setdefault(family.name, (family.documentation, family.type, {}))
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                keys[key] = None
                if not (is_gone and family.type == "gauge"):
                    values[key] = values.get(key, 0.0) + sample.value
    return "".join(_family(name, *found, values) for name, found in families.items()).encode()


def _family(name: str, told: str, kind: str, keys: dict[_Key, None], values: dict[_Key, float]) -> str:
    named = f"{name}_total" if kind == "counter" else name
    lines = [f"# HELP {named} {told}", f"# TYPE {named} {kind}"]
    for sample, labels in keys:
        given = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels)
        value = values.get((sample, labels), 0.0)
        lines.append(f"{sample}{{{given}}} {value}" if given else f"{sample} {value}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
