"""Sequences side by side on one engine: each step runs what all of them need next."""

import time
from collections import Counter
from collections.abc import Collection, Hashable
from collections.abc import Sequence as Seq

import numpy as np

from localoss.engine.accounts import Accounts
from localoss.engine.pacing import EXPRESS_TOKENS, Pace, Shares, WaitingPass
from localoss.engine.passes import Passes
from localoss.engine.sampler import Sampler, Samplers, Token
from localoss.engine.slot import Slot
from localoss.errors import Cancelled, LocalossError
from localoss.model.stack import F32Array

_SCORED_ROWS = 16  # logits of so many at once
_BRISK_STEPS = 2.0  # beside other owners a step takes no longer than so many of one that answers alone
_LEAST_PASS = 64  # tokens
_MASK_SHARE = 0.25  # of what a step took: so long the others wait for the masks of some
_MASK_POLL_S = 0.02  # and so long at a time where there is nothing else to do
_MOST_LEAD_S = 1.0  # a short prompt goes before long ones unless its owner had so much more than theirs

Run = tuple[Slot, Seq[int]]  # a slot, and its tokens of a pass


def _draw(slot: Slot, sampler: Sampler) -> Token | None:
    """A token for `slot`, which ends with an error if there is one; None at its end."""
    try:
        return slot.draw(sampler)
    except Exception as error:  # a mask's, or logits that are not finite: this sequence's alone
        slot.end(error)
        return None


class Batch:
    """The one place that runs passes to generate: prefill chunks and decode steps together.

    >>> slot = batch.add(Slot(engine.sequence(), tokens, SamplingParams()))
    >>> while not slot.is_done:
    ...     for slot, token in batch.step(): ...

    It holds no weights and no caches: any number of batches may take turns on an engine. Within one, and
    among those that take turns, a sequence may be in one slot only. Where slots have several owners, each
    owner has an equal share of the time, however many slots it has and whatever they need; `accounts` has
    what each one's have cost. One alone has all of it.
    """

    def __init__(
        self,
        passes: Passes,
        samplers: Samplers,
        chunk_tokens: int,
        rows: F32Array,
        accounts: Accounts | None = None,
    ) -> None:
        """chunk_tokens: of a pass at most. rows (n, ≥ V): where the logits of up to n slots go."""
        self.accounts = accounts or Accounts()
        self._passes, self._samplers, self._chunk_tokens = passes, samplers, chunk_tokens
        self._rows = rows
        self.slots: list[Slot] = []
        self._waiting: list[WaitingPass] = []
        self._pace, self._shares = Pace(), Shares()

    def add(self, slot: Slot) -> Slot:
        """Take in a sequence; the next step begins its prompt, of which only what its cache lacks is run.

        Raises: UsageError, ContextFullError for a prompt that can't be run.
        """
        self._passes.check_prompt(slot.prompt)
        if slot.random is not None:
            slot.sequence.random = slot.random
        elif slot.params.seed is not None:
            slot.sequence.random = np.random.default_rng(slot.params.seed)
        self.slots.append(slot)
        return slot

    def again_s(self, slot: Slot) -> float | None:
        """How long it takes to read again what `slot` has; None if that is unknown, or it can't pause now."""
        if not slot.may_pause or self._is_waiting(slot):
            return None
        return self._pace.seconds(len(slot.sequence.tokens))

    def pause(self, slot: Slot) -> None:
        """Let go of a slot. With another sequence of the same owner it can be added again, and goes on."""
        self.slots.remove(slot)
        slot.pause()

    def step(self, most_tokens: int | None = None, within_s: float | None = None) -> list[tuple[Slot, Token]]:
        """Run one pass, of at most so many tokens, and draw a token for each sequence that is ready for one.

        A sequence that is cancelled, has ended or has failed drops out, and the others go on: nothing is
        raised for one of them alone. within_s: come back after about so long, in the middle of a pass over
        a long prompt, too: the next steps go on with it, by turns with what others need.
        """
        began = time.perf_counter()
        if within_s is None:
            self._advance(most_tokens)
        else:
            self._advance_within(within_s)
        ready = self._ready_to_draw(time.perf_counter() - began)
        tokens = self._samplers.each(_draw, ready)
        self._drop_done()
        self._passes.rest(time.perf_counter() - began)
        return [(slot, token) for slot, token in zip(ready, tokens, strict=True) if token]

    def _ready_to_draw(self, ran_s: float) -> list[Slot]:
        """The slots with logits, but for those whose masks the others would have to wait for."""
        drawing = [slot for slot in self.slots if slot.rows is not None]
        until = time.perf_counter() + _MASK_SHARE * ran_s
        late = {slot for slot in drawing if not slot.has_mask(max(until - time.perf_counter(), 0.0))}
        if late and len(late) == len(self.slots):
            drawing[0].has_mask(_MASK_POLL_S)  # the next step draws; who has come meanwhile is taken in first
        for slot in late:
            if slot.is_cancelled():
                slot.end(Cancelled("stopped"))
            else:
                slot.keep_rows(self._rows.shape[1])
        return [slot for slot in drawing if slot not in late]

    def advance(self, most_tokens: int | None = None) -> None:
        """Run one pass, of at most so many tokens, for what isn't ready to draw; draw nothing."""
        began = time.perf_counter()
        self._advance(most_tokens)
        self._passes.rest(time.perf_counter() - began)

    def _advance(self, most_tokens: int | None) -> None:
        self._drop_cancelled()
        ready = sorted(self._ready(), key=lambda slot: not slot.is_decoding)
        self._run_in_one_go(self._runs_of(ready, min(most_tokens or self._chunk_tokens, self._chunk_tokens)))
        self._drop_done()

    def _advance_within(self, within_s: float) -> None:
        """Run a pass that fits into the time, or go on for so long with one that waits between layers."""
        self._drop_cancelled()
        ready = self._ready()
        answers = [slot for slot in ready if slot.is_decoding]
        prompts = sorted((s for s in ready if not s.is_decoding), key=lambda s: self.accounts.cost(s.owner))
        within_s = self._brisk(within_s, len(answers))
        room, long = self._chunk_tokens, []
        if self._passes.model.waiting:
            room = self._pace.room(within_s, len(answers), self._chunk_tokens)
            long = [slot for slot in prompts if slot.tokens_left > max(room, 1) and not slot.scored]
        self._let_wait(long, within_s)
        short = [slot for slot in prompts if slot not in long]
        now = [*answers, *short]
        self._shares.weigh({s.owner for s in now}, [_owners(one.runs) for one in self._waiting])
        if self._waiting and (self._shares.is_waitings_turn or not now):
            self._run_on(self._shares.slice_s(within_s, bool(now)), bool(now))
        elif now:
            self._run_within(self._in_turn(now), room)
        self._drop_done()

    def _brisk(self, within_s: float, answers: int) -> float:
        """How long a step may take: less than `within_s` where that is long beside what others need."""
        if len(self.accounts.lately()) < 2:
            return within_s
        usual_s = self._pace.seconds(max(answers, 1))
        return within_s if usual_s is None else min(within_s, _BRISK_STEPS * usual_s)

    def _in_turn(self, slots: list[Slot]) -> list[Slot]:
        """Those of `slots` whose owners had no more of the time than others by over a step."""
        owners = {slot.owner for slot in slots}
        if len(owners) < 2:
            return slots
        cost = self.accounts.cost
        most = min(map(cost, owners)) + (self._pace.seconds(len(owners)) or 0.0)
        return [slot for slot in slots if cost(slot.owner) <= most]

    def _run_within(self, slots: list[Slot], room: int) -> None:
        """One pass over what `slots` need next, with up to `room` tokens of prompts."""
        began = time.perf_counter()
        answers = sum(slot.is_decoding for slot in slots)
        most = min(self._chunk_tokens, answers + max(room, 1)) if answers < len(slots) else self._chunk_tokens
        runs = self._runs_of(slots, most)
        self._run_in_one_go(runs)
        took_s = time.perf_counter() - began
        is_usual = bool(runs) and not any(slot.scored for slot, _ in runs)
        if is_usual:
            self._pace.note(_tokens(runs), took_s)
        # What such a pass usually takes: another program's work is no reason to let somebody wait.
        self._charge(runs, (is_usual and self._pace.seconds(_tokens(runs))) or took_s)
        self._shares.note_in_one_go(took_s, bool(self._waiting))

    def _charge(self, runs: list[Run], took_s: float) -> None:
        """Share what a pass took among the owners, as each one's part would have taken alone."""
        tokens: Counter[Hashable] = Counter()
        for slot, its in runs:
            tokens[slot.owner] += len(its)
        alone_s = {owner: self._pace.seconds(count) or float(count) for owner, count in tokens.items()}
        for owner, seconds in alone_s.items():
            self.accounts.charge(owner, took_s * seconds / sum(alone_s.values()))

    def _let_wait(self, prompts: list[Slot], within_s: float) -> None:
        """Begin passes over those of `prompts` for which there is a residual stream: short ones together."""
        most = self._chunk_tokens
        if len(self.accounts.lately()) > 1:  # others wait for a layer of it
            layers = self._passes.model.config.layers
            most = max(self._pace.room(within_s * layers, 0, most), min(_LEAST_PASS, most))
        for slot in prompts:
            if self._is_waiting(slot):
                continue
            is_long = slot.tokens_left > self._chunk_tokens
            if any(waiting.is_long == is_long for waiting in self._waiting):
                continue
            runs = [(slot, slot.next_tokens(most, self._passes.context_tokens))]
            room = 0 if is_long else min(EXPRESS_TOKENS, most) - len(runs[0][1])
            for other in prompts:
                if other is not slot and not is_long and other.tokens_left <= room:
                    runs.append((other, other.next_tokens(room, self._passes.context_tokens)))
                    room -= len(runs[-1][1])
            least_s = min((waiting.used_s for waiting in self._waiting), default=0.0)
            self._waiting.append(self._waiting_pass(runs, is_long, least_s))

    def _waiting_pass(self, runs: list[Run], is_long: bool, used_s: float) -> WaitingPass:
        its = [(slot.sequence, tokens) for slot, tokens in runs]
        steps = self._passes.in_layers(its, 1 + is_long, lambda: all(slot.is_cancelled() for slot, _ in runs))
        return WaitingPass(runs, steps, is_long, used_s)

    def _run_on(self, for_s: float, others_want: bool) -> None:
        """Go on with the waiting pass that had the least time, of an owner that isn't far ahead of others."""
        cost = {one: min(map(self.accounts.cost, _owners(one.runs))) for one in self._waiting}
        most = min(cost.values()) + _MOST_LEAD_S
        waiting = min(self._waiting, key=lambda one: (max(cost[one], most), one.used_s))
        began = time.perf_counter()
        self._tell_layers(waiting.runs)
        try:
            x = waiting.run_on(for_s)
        except Cancelled as error:
            self._end_all(waiting.runs, error)
            self._waiting.remove(waiting)
        except Exception as error:
            self._end_all(waiting.runs, error)
            self._waiting.remove(waiting)
            raise
        else:
            if x is not None:
                self._waiting.remove(waiting)
                self._pace.note(waiting.tokens, waiting.ran_s)
                self._note_run(waiting.runs, x)
        took_s = time.perf_counter() - began
        self._charge(waiting.runs, took_s)
        self._shares.note_waiting(took_s, others_want)

    def _end_all(self, runs: list[Run], error: Exception) -> None:
        for slot, _ in runs:
            slot.end(error)

    def _drop_cancelled(self) -> None:
        """End those that nobody waits for. One in a pass that waits ends with it: it writes to its cache."""
        if len(self.slots) > 1:  # a lone one is asked for before each layer
            for slot in self.slots:
                if slot.is_cancelled() and not self._is_waiting(slot):
                    slot.end(Cancelled("stopped"))

    def _is_waiting(self, slot: Slot) -> bool:
        return any(slot is one for waiting in self._waiting for one, _ in waiting.runs)

    def _drop_done(self) -> None:
        if any(slot.is_done for slot in self.slots):
            self.slots = [slot for slot in self.slots if not slot.is_done]

    def _ready(self) -> list[Slot]:
        """The slots that a pass could do something for; those without room for it have ended."""
        ready = []
        for slot in self.slots:
            if slot.rows is not None or slot.is_done or self._is_waiting(slot):
                continue
            slot.begin(self._passes)
            try:
                self._passes.check_room(slot.sequence, 1)
            except LocalossError as error:
                slot.end(error)
            else:
                ready.append(slot)
        return ready

    def _runs_of(self, slots: list[Slot], room: int) -> list[Run]:
        """What each of `slots` needs next, in their order, while there is room; drafts leave it to others."""
        runs: list[Run] = []
        answers = sum(slot.is_decoding for slot in slots)
        for slot in slots:
            answers -= slot.is_decoding
            if room:
                tokens = slot.next_tokens(max(room - answers, 1), self._passes.context_tokens)
                runs.append((slot, tokens))
                room -= len(tokens)
        return runs

    def _tell_layers(self, runs: list[Run]) -> None:
        """Have those of `runs` told of each layer whose pass takes minutes: thousands of tokens, with experts
        from the disk.
        """
        model = self._passes.model
        long = [(slot, len(tokens)) for slot, tokens in runs if len(tokens) > model.buffers.tokens]

        def passed(done: int) -> None:
            for slot, tokens in long:
                slot.note_layers(tokens, done, model.config.layers)

        model.tell(passed if long else None)

    def _run_in_one_go(self, runs: list[Run]) -> None:
        if runs:
            self._tell_layers(runs)
            try:
                self._run(runs)
            except Cancelled as error:
                self._end_all(runs, error)

    def _run(self, runs: list[Run]) -> None:
        """One pass. It is cut short only if nobody waits for any part of it."""

        def cancelled() -> bool:
            return all(slot.is_cancelled() for slot, _ in runs)

        if len(runs) == 1:
            slot, tokens = runs[0]
            is_last = slot.is_decoding or len(slot.sequence.tokens) + len(tokens) == len(slot.prompt)
            has_more_rows = (
                slot.is_decoding and len(tokens) > 1
            ) or slot.scored  # draft tokens, or a prompt's
            if is_last and not has_more_rows:
                rows = self._passes.next_logits(slot.sequence, tokens, cancelled, self._rows[:1])
                slot.note_run(self._passes, len(tokens))
                slot.rows = rows
                if slot.lookup:
                    slot.keep_rows(self._rows.shape[1])
                return
        self._note_run(runs, self._passes.run([(slot.sequence, tokens) for slot, tokens in runs], cancelled))

    def _note_run(self, runs: list[Run], x: F32Array) -> None:
        """Give each slot what x (T, D) means for it, the residual stream of `runs` after the last layer."""
        first, wanted = 0, []
        for slot, tokens in runs:
            end = first + len(tokens)
            if slot.scored:
                self._score(slot, x[first:end])
            if slot.note_run(self._passes, len(tokens)):
                wanted.append((slot, range(first if slot.is_decoding else end - 1, end)))
            first = end
        if wanted:
            self._unembed(x, wanted)

    def _score(self, slot: Slot, x: F32Array) -> None:
        """Score the tokens of the prompt that follow those of x (n, D), the last that were run."""
        assert slot.scored
        at = len(slot.sequence.tokens) - len(x)
        rows = np.empty((_SCORED_ROWS, self._rows.shape[1]), np.float32)
        if not at:
            slot.scored(Token(slot.prompt[0], float("nan")))  # nothing stands before it to score it by
        for first in range(0, len(x), _SCORED_ROWS):
            here = x[first : first + _SCORED_ROWS]
            for row, logits in enumerate(self._passes.logits(here, [slot.sequence], rows[: len(here)])):
                if (place := at + first + row + 1) < len(slot.prompt):
                    slot.scored(self._samplers.first.score(logits, slot.prompt[place], slot.params.logprobs))

    def _unembed(self, x: F32Array, wanted: list[tuple[Slot, range]]) -> None:
        """Give each slot the logits of its rows of x (T, D): those that have one together."""
        alone = [(slot, rows) for slot, rows in wanted if len(rows) > 1]
        together = [(slot, rows[0]) for slot, rows in wanted if len(rows) == 1]
        for slot, rows in alone:
            out = slot.draft_rows(self._rows.shape[1])[: len(rows)]
            slot.rows = self._passes.logits(x[rows.start : rows.stop], [slot.sequence], out)
        if len(together) > len(self._rows):
            self._rows = np.empty((len(together), self._rows.shape[1]), np.float32)
        if together:
            sequences = [slot.sequence for slot, _ in together]
            rows_of_x = x[[row for _, row in together]]
            logits = self._passes.logits(rows_of_x, sequences, self._rows[: len(together)])
            for number, (slot, _) in enumerate(together):
                slot.rows = logits[number : number + 1]
                if slot.lookup:
                    slot.keep_rows(self._rows.shape[1])


def _owners(runs: Collection[Run]) -> set[Hashable]:
    return {slot.owner for slot, _ in runs}


def _tokens(runs: Collection[Run]) -> int:
    return sum(len(tokens) for _, tokens in runs)
