"""A conversation: what was said, and the prompt that it makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, Message


@dataclass
class Conversation:
    """Messages under a setup. Thinking is forgotten once the turn's final answer stands."""

    setup: ChatSetup
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> list[int]:
        """Add a user's message and give the tokens of the whole conversation."""
        self.messages.append(Message("user", text))
        return harmony.render(self.setup, self.messages)

    def answer(self, messages: Sequence[Message]) -> None:
        """Add the assistant's messages of a turn.

        A turn that was cut off before its final answer or a tool call leaves nothing of its thinking.
        """
        kept = [message for message in messages if message.text or message.recipient]
        if not any(message.channel == "final" or message.recipient for message in kept):
            kept = [message for message in kept if message.channel != "analysis"]
        self.messages = harmony.drop_finished_analysis([*self.messages, *kept])

    def take_back(self) -> None:
        """Forget the last user's message and everything after it."""
        while self.messages and self.messages.pop().role != "user":
            pass

    def clear(self) -> None:
        self.messages.clear()

    def set_effort(self, effort: str) -> None:
        """Raises: UsageError for an effort that is none of low, medium, high."""
        self.setup = replace(self.setup, effort=effort)
