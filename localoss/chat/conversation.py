"""A conversation: what was said, and the prompt that it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, File, Message


@dataclass
class Conversation:
    """Messages under a setup. Thinking is forgotten once the turn's final answer stands.

    left_out: how many of the oldest messages the model no longer sees.
    """

    setup: ChatSetup
    messages: list[Message] = field(default_factory=list)
    left_out: int = 0

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

        A turn that was cut off before its final answer or a tool call leaves nothing of its thinking.
        """
        kept = [message for message in messages if message.text or message.recipient]
        if not any(message.channel == "final" or message.recipient for message in kept):
            kept = [message for message in kept if message.channel != "analysis"]
        self.messages = harmony.drop_finished_analysis([*self.messages, *kept])

    @property
    def files(self) -> list[File]:
        """All files that went with messages."""
        return [file for message in self.messages for file in message.files]

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
        return message

    def drop_answer(self) -> bool:
        """Forget what came after the last user's message. False if there is no such message."""
        asked = self._asked()
        if asked:
            del self.messages[asked[-1] + 1 :]
        return bool(asked)

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
        self.left_out = 0

    def set_effort(self, effort: str) -> None:
        """Raises: UsageError for an effort that is none of low, medium, high."""
        self.setup = replace(self.setup, effort=effort)

    def set_instructions(self, text: str | None) -> None:
        self.setup = replace(self.setup, instructions=text)

    def _asked(self) -> list[int]:
        return [index for index, message in enumerate(self.messages) if message.role == "user"]
