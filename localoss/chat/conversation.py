"""A conversation: what was said, and the prompt that it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, File, Message


@dataclass
class Branch:
    """Another way that a conversation went: `messages` from where it parted to its end (chat/branches.py).

    exchange: how many users' messages stand before that place. is_answer: it parts after the next one of
    them, not before. rank: its number among the ways there, from 0. branches: those that part from it
    further on.
    """

    exchange: int
    is_answer: bool
    rank: int
    messages: list[Message]
    branches: "list[Branch]" = field(default_factory=list)


@dataclass
class Conversation:
    """Messages under a setup. Once an answer stands, the model forgets thoughts, python and browser.

    left_out: how many of the oldest messages the model no longer sees. title: what its user calls it.
    branches: questions and answers that others stand in place of; the model doesn't see them.
    """

    setup: ChatSetup
    messages: list[Message] = field(default_factory=list)
    left_out: int = 0
    title: str | None = None
    branches: list[Branch] = field(default_factory=list)

    def ask(self, text: str, files: Sequence[File] = ()) -> None:
        """Add a user's message."""
        self.messages.append(Message("user", text, files=tuple(files)))

    def tokens(self) -> list[int]:
        """The whole conversation as a prompt, up to the `<|start|>assistant` that the model continues."""
        return harmony.render(self.setup, self.messages[self.left_out :])

    @property
    def is_answered(self) -> bool:
        return not self.messages or self.messages[-1].role != "user"

    @property
    def last_answer(self) -> str:
        """The text of the last final message, or nothing."""
        finals = [message.text for message in self.messages if message.channel == "final"]
        return finals[-1] if finals else ""

    def answer(self, messages: Sequence[Message]) -> None:
        """Add the assistant's messages of a turn.

        A turn that was cut off before its final answer or a tool call leaves nothing of its thinking. That of
        one with a final answer stays with it.
        """
        kept = [message for message in messages if message.text or message.recipient]
        if not any(message.channel == "final" or message.recipient for message in kept):
            kept = [message for message in kept if message.channel != "analysis"]
        turn = [*self.messages[self._asked()[-1] + 1 :], *kept] if self._asked() else kept
        thoughts = [m.text for m in turn if m.channel == "analysis" and not m.recipient]
        if thoughts:
            thinking = "\n\n".join(thoughts)
            kept = [replace(m, thinking=thinking) if m.channel == "final" else m for m in kept]
        self.messages = harmony.drop_finished_thoughts([*self.messages, *kept])

    @property
    def files(self) -> list[File]:
        """All files that went with messages."""
        return [file for message in self.messages for file in message.files]

    @property
    def asked(self) -> int:
        """How many messages are a user's."""
        return len(self._asked())

    @property
    def last_asked(self) -> Message | None:
        """The last user's message."""
        asked = self._asked()
        return self.messages[asked[-1]] if asked else None

    def take_back(self) -> Message | None:
        """Forget the last user's message and everything after it; gives it, None if there is none."""
        asked = self._asked()
        if not asked:
            return None
        message = self.messages[asked[-1]]
        del self.messages[asked[-1] :]
        self.left_out = min(self.left_out, asked[-1])
        parted = len(asked) - 1, False
        self.branches = [one for one in self.branches if (one.exchange, one.is_answer) <= parted]
        return message

    def leave_out_oldest(self, fits: Callable[[int], bool]) -> int:
        """Leave exchanges out of the prompt, the oldest first, until `fits(its tokens)`.

        The last user's message always stays. Gives how many messages were left out.
        """
        before = self.left_out
        for start in [index for index in self._asked() if index > before]:
            if fits(len(self.tokens())):
                break
            self.left_out = start
        return self.left_out - before

    def clear(self) -> None:
        self.messages.clear()
        self.branches.clear()
        self.left_out, self.title = 0, None

    def set_effort(self, effort: str) -> None:
        """Raises: UsageError for an effort that is none of low, medium, high."""
        self.setup = replace(self.setup, effort=effort)

    def set_instructions(self, text: str | None) -> None:
        self.setup = replace(self.setup, instructions=text)

    def _asked(self) -> list[int]:
        return [index for index, message in enumerate(self.messages) if message.role == "user"]
