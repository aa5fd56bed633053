"""What turns cost and what fills the context, as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localoss.chat import harmony
from localoss.chat.conversation import Conversation

if TYPE_CHECKING:
    from localoss.chat.turn import Turn

_COLUMNS, _ROWS = 40, 5  # of the picture of the context
_FREE = "·"
_TABLE_COLUMNS = 76  # of a turns table with all its columns


@dataclass(frozen=True)
class TurnFigures:
    """Counts and times of one turn. prompt_tokens: the whole conversation; prefilled_tokens: what was run."""

    prompt_tokens: int
    prefilled_tokens: int
    thinking_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    @classmethod
    def of(cls, turn: "Turn") -> "TurnFigures":
        return cls(
            len(turn.prompt),
            turn.prefilled_tokens,
            turn.thinking_tokens,
            turn.generated_tokens,
            turn.prefill_s,
            turn.decode_s,
            turn.prefill_tokens_per_s,
            turn.decode_tokens_per_s,
        )


def turns_table(turns: Sequence[TurnFigures], columns: int = 80) -> str:
    """A line for each turn, and one for all; without prefill and thinking if `columns` are few."""
    if not turns:
        return "no turn yet"
    head: tuple[str, ...] = (
        "turn",
        "prompt",
        "prefilled",
        "tokens/s",
        "thinking",
        "generated",
        "tokens/s",
        "seconds",
    )
    rows: list[tuple[str, ...]] = [
        (str(number), f"{turn.prompt_tokens:,}", *_costs([turn]))
        for number, turn in enumerate(turns, start=1)
    ]
    if len(turns) > 1:
        rows.append(("all", "", *_costs(turns)))
    if columns < _TABLE_COLUMNS:
        head = ("turn", "prompt", "answer", "tok/s", "s")
        rows = [(row[0], row[1], *row[5:]) for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )


def _costs(turns: Sequence[TurnFigures]) -> tuple[str, ...]:
    prefilled, generated = sum(t.prefilled_tokens for t in turns), sum(t.generated_tokens for t in turns)
    prefill_s, decode_s = sum(t.prefill_s for t in turns), sum(t.decode_s for t in turns)
    decoded = sum(max(t.generated_tokens - 1, 0) for t in turns)  # the first comes with the prefill
    return (
        f"{prefilled:,}",
        f"{prefilled / prefill_s:.1f}" if prefill_s else "-",
        f"{sum(t.thinking_tokens for t in turns):,}",
        f"{generated:,}",
        f"{decoded / decode_s:.1f}" if decode_s else "-",
        f"{prefill_s + decode_s:.1f}",
    )


def context_parts(conversation: Conversation, waiting: str) -> list[tuple[str, str, int]]:
    """Mark, name and tokens of each part of the prompt. waiting: text for the next message."""
    setup, seen = conversation.setup, conversation.messages[conversation.left_out :]
    bare = harmony.ChatSetup(setup.effort, date=setup.date)
    system, start = len(harmony.render(bare, [])), len(harmony.render(setup, []))
    asked = [message for message in seen if message.role == "user"]
    user = len(harmony.render(setup, asked)) - start
    answers = len(harmony.render(setup, seen)) - start - user
    return [
        ("s", "system message", system),
        ("i", "your instructions", start - system),
        ("u", "your messages", user),
        ("a", "answers", answers),
        ("r", "/read, for the next message", len(harmony.encode_raw(waiting)) if waiting else 0),
    ]


def context_picture(parts: Sequence[tuple[str, str, int]], room: int) -> str:
    """A picture of `room` tokens, a mark for each share that a part fills, and the counts."""
    cells = _COLUMNS * _ROWS
    marks, used = "", 0
    for mark, _, tokens in parts:
        used += tokens
        marks += mark * max(round(used * cells / room) - len(marks), int(tokens > 0))
    marks = marks[:cells].ljust(cells, _FREE)
    picture = [marks[row * _COLUMNS : (row + 1) * _COLUMNS] for row in range(_ROWS)]
    names = [(mark, name, tokens) for mark, name, tokens in parts if tokens]
    names.append((_FREE, "free", max(room - used, 0)))
    legend = [f"{mark}  {tokens:>8,}  {name}" for mark, name, tokens in names]
    return "\n".join([*picture, "", *legend, "", f"{used:,} of {room:,} tokens, {used / room:.0%}"])
