"""`localoss plan -i`: arrow keys change what is planned, and bar, verdict and speed move along."""

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.application.current import get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl

from localoss.options import KV_DTYPES
from localoss.plan.disk import ASSUMED_BYTES_PER_S, DiskSpeed
from localoss.plan.experts import Streaming, with_cache
from localoss.plan.gpu_speed import CARD_BYTES_PER_S, gpu_estimate
from localoss.plan.memory import FITS, TOO_LARGE, Plan, gigabytes
from localoss.plan.speed import estimate

_LEAST_CONTEXT = 1024
_COLORS = {FITS: "ansigreen", TOO_LARGE: "ansired"}
_KEYS = "Up and Down choose, Left and Right change, Enter takes it, q leaves"


class LivePlan:
    """The plan that is shown, and the row that the arrows change."""

    def __init__(self, plan: Plan, limit_bytes: int, draw_bar: Callable[[Plan, int], str]) -> None:
        self.plan, self._limit_bytes, self._draw_bar = plan, limit_bytes, draw_bar
        self._row = 0
        contexts = [_LEAST_CONTEXT]
        while contexts[-1] * 2 <= plan.config.context:
            contexts.append(contexts[-1] * 2)
        self._choices: list[tuple[str, str, list[Any]]] = [
            ("context", "context_tokens", sorted({*contexts, plan.context_tokens, plan.config.context})),
            ("KV cache", "kv_dtype", list(KV_DTYPES)),
            ("GPU layers", "gpu_layers", list(range(plan.config.layers + 1))),
        ]

    def move(self, rows: int) -> None:
        self._row = (self._row + rows) % len(self._choices)

    def change(self, steps: int) -> None:
        """Take the next value of the chosen row; at an end it stays."""
        _, name, values = self._choices[self._row]
        at = values.index(getattr(self.plan, name)) + steps
        self.plan = replace(self.plan, **{name: values[min(max(at, 0), len(values) - 1)]})

    def lines(self, columns: int) -> StyleAndTextTuples:
        """What is shown, as prompt_toolkit's styles and texts."""
        verdict = self.plan.verdict(self._limit_bytes)
        shown: StyleAndTextTuples = []
        for row, (label, name, _) in enumerate(self._choices):
            value = getattr(self.plan, name)
            text = f"{value:,}" if isinstance(value, int) else value
            chosen = row == self._row
            shown.append(("bold" if chosen else "", f"{'>' if chosen else ' '} {label:<11} ◂ {text} ▸\n"))
        style = _COLORS.get(verdict, "ansiyellow")
        shown.append((style, f"\n{self._draw_bar(self.plan, columns)}\n\n"))
        told = f"{verdict}: {gigabytes(self.plan.total_bytes)} of {gigabytes(self._limit_bytes)}"
        if self.plan.gpu_bytes:
            told += f", and {gigabytes(self.plan.gpu_bytes)} on the GPU"
        shown.append((style, f"{textwrap.fill(told, columns)}\n"))
        shown.append(("", f"{textwrap.fill(self._speed(), columns)}\n\n{textwrap.fill(_KEYS, columns)}\n"))
        return shown

    def _speed(self) -> str:
        if self.plan.gpu_layers and self.plan.verdict(self._limit_bytes) == FITS:
            on_card = gpu_estimate(self.plan)
            told = f"{on_card.tokens_per_s:.3g} tokens/s, {on_card.full_tokens_per_s:.3g} with a full context"
            return f"estimate (a card of {CARD_BYTES_PER_S / 1e9:.0f} GB/s): {told}"
        if self.plan.gpu_layers:
            return "speed: slow, as the disk allows"
        speed = estimate(self.plan, self._limit_bytes)
        if speed is None:
            cached = with_cache(self.plan, self._limit_bytes)
            if cached is None:
                return "speed: slow, as the disk allows"
            streaming = Streaming(cached, DiskSpeed(ASSUMED_BYTES_PER_S))
            rate = f"{streaming.disk.bytes_per_s / 1e9:.1f} GB/s"
            return f"estimate: {streaming.tokens_per_s:.2g} tokens/s with experts from a disk of {rate}"
        told = f"{speed.tokens_per_s:.3g} tokens/s, {speed.full_tokens_per_s:.3g} with a full context"
        return f"estimate ({speed.source}): {told}"

    @property
    def options(self) -> str:
        """The options that ask for this plan."""
        gpu = f" --gpu-layers {self.plan.gpu_layers}" if self.plan.gpu_layers else ""
        return f"--context {self.plan.context_tokens} --kv-dtype {self.plan.kv_dtype}{gpu}"


def show(live: LivePlan) -> bool:
    """Show `live` until the user leaves. Whether it was taken."""
    keys = KeyBindings()
    for key, rows in (("up", -1), ("down", 1), ("k", -1), ("j", 1)):
        keys.add(key)(_calling(live.move, rows))
    for key, steps in (("left", -1), ("right", 1), ("h", -1), ("l", 1)):
        keys.add(key)(_calling(live.change, steps))
    for key in ("q", "escape", "c-c", "c-d"):
        keys.add(key, eager=key == "escape")(lambda event: event.app.exit(result=False))
    keys.add("enter")(lambda event: event.app.exit(result=True))
    control = FormattedTextControl(lambda: live.lines(get_app().output.get_size().columns - 1))
    layout = Layout(Window(control, wrap_lines=True, dont_extend_height=True))
    app: Application[bool] = Application(layout=layout, key_bindings=keys, erase_when_done=False)
    return app.run()


def _calling(function: Callable[[int], None], amount: int) -> Callable[[KeyPressEvent], None]:
    def call(_event: KeyPressEvent) -> None:
        function(amount)

    return call
