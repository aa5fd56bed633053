"""One answer on the command line: its turns and calls, what is shown of them, and what is told of them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

import typer

from localoss.chat import agent as agents
from localoss.chat.agent import Agent, CallDone, CallEvent
from localoss.chat.conversation import Conversation
from localoss.chat.generate import generate
from localoss.chat.harmony import Message
from localoss.chat.remote import RemoteModel
from localoss.chat.rules import AnswerRules
from localoss.chat.turn import Turn
from localoss.cli.terminal import AnswerPrinter, PrefillProgress, interrupts, say
from localoss.cli.tool_calls import show_call
from localoss.errors import ContextFullError
from localoss.options import SamplingParams
from localoss.tools.citations import Citation, Footnotes, annotations, with_footnotes

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.tools.toolset import Toolset


class OneAnswer:
    """Answers the last message of a conversation, or goes on with raw tokens."""

    def __init__(
        self,
        engine: "Engine | RemoteModel",
        asked: Conversation | list[int],
        sampling: SamplingParams,
        think_budget: int | None,
        tools: "Toolset | None",
    ) -> None:
        self._engine, self._asked, self._sampling = engine, asked, sampling
        self._think_budget, self._tools = think_budget, tools
        self._agent = Agent(tools) if tools else None
        self._sequence = engine.sequence(seed=sampling.seed) if tools else None
        self._turns: list[Turn] = []
        self._calls: list[CallDone] = []

    def generate(self, printer: AnswerPrinter | None, thoughts: TextIO | None) -> None:
        """Generate to the end. printer: shows what comes. thoughts: where calls are told of, if anywhere."""

        def heard(event: CallEvent) -> None:
            if isinstance(event, CallDone):
                self._calls.append(event)
            if thoughts is not None:
                show_call(event)

        if self._agent is None or not isinstance(self._asked, Conversation):
            self._take_turn(printer)
            return
        room = self._engine.context_tokens
        agents.answer(self._agent, self._asked, lambda: self._take_turn(printer), heard, interrupts, room)

    def finish(self) -> None:
        """Say what an unusual end means. Raises: ContextFullError, or typer.Exit after Ctrl-C."""
        turn = self._turns[-1]
        if turn.finish == "cancelled":
            raise typer.Exit(130)
        if turn.finish == "context":
            raise ContextFullError(
                f"the answer broke off: {len(turn.prompt):,} tokens of prompt and {turn.generated_tokens:,} "
                f"of answer fill the context of {self._engine.context_tokens:,}; give a larger --context"
            )
        if turn.finish == "length" and not turn.answer:
            say(f"note: --max-tokens {turn.params.max_tokens} ended the answer before its final message")

    @property
    def last_logprob(self) -> float:
        return self._turns[-1].last_logprob

    def report(self) -> dict[str, Any]:
        """Texts, messages, calls, counts and times, for JSON."""
        turns, last = self._turns, self._turns[-1]
        generated = sum(turn.generated_tokens for turn in turns)
        prefilled, prefill_s = sum(t.prefilled_tokens for t in turns), sum(t.prefill_s for t in turns)
        decode_s = sum(turn.decode_s for turn in turns)
        return {
            "answer": last.answer,
            "thinking": "\n\n".join(turn.thinking for turn in turns if turn.thinking),
            "messages": [_shown(message) for message in self._messages()],
            "citations": annotations(last.answer, self._citation),
            "events": [_event(done) for done in self._calls],
            "finish": last.finish,
            "prompt_tokens": len(turns[0].prompt),
            "generated_tokens": generated,
            "thinking_tokens": sum(turn.thinking_tokens for turn in turns),
            "prefill_s": round(prefill_s, 3),
            "decode_s": round(decode_s, 3),
            "prefill_tokens_per_s": round(prefilled / prefill_s, 2) if prefill_s else 0.0,
            "decode_tokens_per_s": round((generated - len(turns)) / decode_s, 2) if decode_s else 0.0,
            "server": self._engine.server.url if isinstance(self._engine, RemoteModel) else None,
            "gpu": self._engine.device_figures(),
            "experts": self._engine.expert_figures(),
        }

    def _messages(self) -> list[Message]:
        """All that was said, the results of calls where they came."""
        said: list[Message] = []
        for number, turn in enumerate(self._turns):
            said += turn.messages
            said += [self._calls[number].result] if number < len(self._calls) else []
        return said

    def _citation(self, cursor: int) -> Citation | None:
        return self._tools.citation(cursor) if self._tools else None

    def _take_turn(self, printer: AnswerPrinter | None) -> Turn:
        tokens = self._asked.tokens() if isinstance(self._asked, Conversation) else self._asked
        setup = self._asked.setup if isinstance(self._asked, Conversation) else None
        rules = replace(self._agent.rules if self._agent else AnswerRules(), think_budget=self._think_budget)
        turn = Turn(tokens, setup, self._sampling, rules)
        self._turns.append(turn)
        progress = PrefillProgress()
        with interrupts() as cancelled:
            try:
                events = generate(self._engine, turn, self._sequence, progress, cancelled)
                for event in with_footnotes(events, Footnotes(self._citation)):
                    progress.clear()
                    if printer:
                        printer.show(event)
            finally:
                progress.clear()
                if printer:
                    printer.close()
        if cancelled():
            turn.stop()
        if isinstance(self._asked, Conversation):
            self._asked.answer(turn.whole_messages)
        return turn


def _shown(message: Message) -> dict[str, Any]:
    shown = {
        "channel": message.channel,
        "recipient": message.recipient,
        "content_type": message.content_type,
        "text": message.text,
    }
    return shown if message.role == "assistant" else {"role": message.role, "name": message.name, **shown}


def _event(done: CallDone) -> dict[str, Any]:
    return {
        "type": "call",
        "tool": done.call.recipient,
        "arguments": done.call.text,
        "result": done.result.text,
        "ok": done.ok,
        "seconds": round(done.seconds, 3),
        "pictures": list(done.pictures),
    }
