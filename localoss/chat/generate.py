"""A turn on an engine: the engine's tokens go to the turn, and what they bring about to the caller."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from localoss.chat.parser import Event
from localoss.chat.remote import RemoteModel, RemoteSequence, RemoteToken
from localoss.chat.turn import Turn
from localoss.errors import Cancelled, ContextFullError

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.engine.sampler import Token
    from localoss.engine.sequence import Sequence


def generate(
    engine: "Engine | RemoteModel",
    turn: Turn,
    sequence: "Sequence | RemoteSequence | None" = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Run `turn` to its end, and give what happens.

    Args:
        engine: runs the model, here or in a server.
        turn: says what to ask and what may be answered; read the rest from it afterwards.
        sequence: what may hold the beginning of the prompt already; None for a new one.
        progress: told how many tokens of the prompt are done, of how many.
        cancelled: asked between layers whether to stop.
    Raises: as Turn.begin, and LocalossError for what fails on the way. A full context and Cancelled end the
        answer early, which `turn.finish` tells.
    """
    turn.begin(engine.config.vocab, engine.context_tokens)

    def note(done: int, total: int) -> None:
        turn.note_prefill(done, total)
        if progress:
            progress(done, total)

    error: Exception | None = None
    try:
        for token in _tokens(engine, turn, sequence, note, cancelled):
            turn.last_logprob = token.logprob
            yield from turn.push(token.id)
    except (Cancelled, ContextFullError) as cut:
        error = cut
    yield from turn.end(error)


def _tokens(
    engine: "Engine | RemoteModel",
    turn: Turn,
    sequence: "Sequence | RemoteSequence | None",
    note: Callable[[int, int], None],
    cancelled: Callable[[], bool] | None,
) -> "Iterator[Token] | Iterator[RemoteToken]":
    if isinstance(engine, RemoteModel):
        return engine.answer(turn, note, cancelled or (lambda: False))
    assert not isinstance(sequence, RemoteSequence)
    return engine.generate(
        turn.prompt,
        turn.params,
        sequence=sequence,
        mask=turn.mask if turn.setup else None,
        checkpoints=turn.checkpoints,
        progress=note,
        cancelled=cancelled,
    )
