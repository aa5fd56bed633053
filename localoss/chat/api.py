"""Text in, text out: a chat for programs, over the tokens of an engine."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localoss.chat.agent import Agent, Tools
from localoss.chat.conversation import Conversation
from localoss.chat.generate import generate
from localoss.chat.grammar_limits import strict_grammar
from localoss.chat.harmony import ChatSetup
from localoss.chat.parser import Event
from localoss.chat.rules import AnswerRules, argument_grammars
from localoss.chat.tools import ToolCall, call_of, parse_function, result_message
from localoss.chat.turn import Turn
from localoss.errors import Cancelled, UsageError
from localoss.options import SamplingParams, changed

if TYPE_CHECKING:
    from localoss.engine.engine import Engine


class RunTools(Tools, Protocol):
    """Tools that are run here. See localoss.tools.toolset."""

    def add_to(self, setup: ChatSetup) -> ChatSetup:
        """`setup` with what the model is told of them."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    text: of the final channel. thinking: what came before it. calls: functions that the model wants called;
    then there is no text yet. finish: return, call, end, length, context or cancelled.
    prompt_tokens, generated_tokens: counts of tokens, the whole conversation's and this answer's.
    """

    text: str
    thinking: str
    calls: tuple[ToolCall, ...]
    finish: str
    prompt_tokens: int
    generated_tokens: int

    def json(self) -> Any:
        """The text as JSON, where a schema was asked for. Raises: UsageError if it was cut short."""
        try:
            return json.loads(self.text)
        except ValueError:
            raise UsageError(
                f"the answer is no JSON (it ended by {self.finish!r}); allow more tokens"
            ) from None


class Chat:
    """A conversation with a model, in text. It remembers what was said; `last` is the newest Reply.

    >>> chat = localoss.Chat("demo")
    >>> chat.ask("What is 37 + 48?").text
    '37 + 48 = 85'
    """

    def __init__(
        self,
        model: "Engine | str | Path",
        *,
        instructions: str | None = None,
        effort: str = "medium",
        tools: Sequence[Mapping[str, Any]] = (),
        runs: "RunTools | None" = None,
        **load_options: Any,
    ) -> None:
        """Begin a conversation.

        Args:
            model: a name or folder, which is loaded; or an engine, which any number of chats may share, as
                long as one of them at a time answers.
            instructions: what the model is to heed throughout (the developer message).
            effort: of thinking: low, medium or high.
            tools: functions that the model may call, each {"type": "function", "function": {"name": …,
                "description": …, "parameters": JSON schema}} as OpenAI's API has them.
            runs: tools that are run here while it answers, python and the browser among them: what
                localoss.tools.choice.open_tools gives. Whoever opened them closes them.
            load_options: fields of LoadOptions by name, for a model that is loaded here.
        Raises: LocalossError: as localoss.load; UsageError for a bad effort or tool, or load_options beside
            an engine.
        """
        parsed = [parse_function(tool) for tool in tools]
        functions = tuple(function for function, _ in parsed)
        setup = ChatSetup(effort, instructions, functions)
        strict = [function.name for function, is_strict in parsed if is_strict]
        self._arguments = argument_grammars(functions, strict)
        self._own = frozenset(f"functions.{function.name}" for function in functions)
        self._agent = None
        if runs is not None:
            told = runs.add_to(setup)
            setup = replace(told, functions=(*functions, *told.functions))
            self._arguments = {**runs.rules.arguments, **self._arguments}
            self._agent = Agent(runs)
        self.conversation = Conversation(setup)
        self.last: Reply | None = None
        self.engine = _engine_of(model, load_options)
        self._sequence = self.engine.sequence()

    def ask(
        self,
        text: str | None = None,
        *,
        effort: str | None = None,
        schema: dict[str, Any] | None = None,
        params: SamplingParams | None = None,
        **changes: Any,
    ) -> Reply:
        """Say `text` and wait for the answer. Arguments and errors: as for `stream`. Returns: the answer."""
        for _ in self.stream(text, effort=effort, schema=schema, params=params, **changes):
            pass
        assert self.last
        return self.last

    def stream(
        self,
        text: str | None = None,
        *,
        effort: str | None = None,
        schema: dict[str, Any] | None = None,
        params: SamplingParams | None = None,
        **changes: Any,
    ) -> Iterator[Event]:
        """Say `text`, and give what happens as it happens; `last` is the answer afterwards.

        If the caller stops early, what was said until then stays in the conversation.

        Args:
            text: the message; None goes on after `give_result`.
            effort: low, medium or high, from here on; None keeps what it is.
            schema: a JSON schema that the final message follows.
            params: how tokens are drawn; changes: fields of SamplingParams by name, such as temperature=0.
        Returns: an iterator over MessageStart, TextDelta and MessageEnd of localoss.chat.parser.
        Raises: UsageError for a bad argument; ContextFullError if the conversation leaves no room: then
            `text` is no part of it.
        """
        params = changed(params or SamplingParams(), changes)
        rules = AnswerRules(final=strict_grammar(schema) if schema else None, arguments=self._arguments)
        if text is None and (not self.conversation.messages or self.conversation.messages[-1].role != "tool"):
            raise UsageError("there is nothing to answer: give a text, or a call's result by give_result")
        if effort is not None:
            self.conversation.set_effort(effort)
        return self._answer(text, params, rules)

    def give_result(self, call: ToolCall, output: str) -> None:
        """Tell what a call of the last reply gave, as text; `ask()` then goes on."""
        self.conversation.messages.append(result_message(call.name, output))

    def _answer(self, text: str | None, params: SamplingParams, rules: AnswerRules) -> Iterator[Event]:
        conversation = self.conversation
        before = list(conversation.messages)
        if text is not None:
            conversation.ask(text)
            if self._agent:
                self._agent.begin()
        while True:
            try:
                turn = Turn(conversation.tokens(), conversation.setup, params, rules)
                yield from generate(self.engine, turn, self._sequence)
            except GeneratorExit:
                turn.end(Cancelled("stopped"))
                self._keep(turn)
                raise
            except BaseException:
                conversation.messages = before
                raise
            self._keep(turn)
            if not self._has_run(turn):
                return
            if self._agent and self._agent.is_over:
                rules = replace(rules, functions=(), builtin_tools=False)

    def _has_run(self, turn: Turn) -> bool:
        """Make the call that the turn ended with, if it is one of those that are run here."""
        call = self.conversation.messages[-1]
        if self._agent is None or turn.finish != "call" or call.recipient in self._own:
            return False
        room = self.engine.context_tokens - len(turn.prompt) - turn.generated_tokens
        done = self._agent.carry_out(call, room_tokens=room)
        self.conversation.messages.append(done.result)
        if done.is_stopped:
            raise KeyboardInterrupt
        return True

    def _keep(self, turn: Turn) -> None:
        calls = [m for m in turn.messages if m.recipient] if turn.finish == "call" else []
        self.conversation.answer(turn.whole_messages)
        self.last = Reply(
            turn.answer,
            turn.thinking,
            tuple(call_of(message) for message in calls),
            turn.finish,
            len(turn.prompt),
            turn.generated_tokens,
        )


def _engine_of(model: "Engine | str | Path", load_options: dict[str, Any]) -> "Engine":
    if isinstance(model, str | Path):
        from localoss.engine.loader import load_engine
        from localoss.options import Listener, LoadOptions

        return load_engine(model, changed(LoadOptions(), load_options), Listener())
    if load_options:
        names = ", ".join(load_options)
        raise UsageError(f"{names}: an engine is loaded already; give these to localoss.load")
    return model
