"""Calls of MCP servers that a client's user was asked about: which one waits, and what was said of it."""

from collections.abc import Collection, Mapping, Sequence

from localoss.chat.harmony import Message
from localoss.chat.tools import answer_message
from localoss.server.core.errors import ApiError
from localoss.server.core.turns import Approved
from localoss.server.responses.hosted_items import call_id_of
from localoss.server.responses.schemas import InputItem
from localoss.tools.approval import REFUSED

_UNANSWERED = "The user was asked about this call, and has not allowed it."
_NOT_THERE = "What this call gave isn't there any more."
_REQUEST = "mcpr_"


class Approval:
    """The request for approval that waits for its answer, as the items of an input come.

    made: the ids of requests whose calls were made, and stand in the input themselves.
    """

    def __init__(
        self, before: Sequence[Message], names: Mapping[str, str], made: Collection[str | None]
    ) -> None:
        """before: the messages that the input goes on; if they end with a call, it is that which waits.

        names: of the functions called, by ids, the newest last.
        """
        self.approved: Approved | None = None
        self.made = made
        self._waiting: tuple[str, Message] | None = None
        asked = [one for one in names if one.startswith(_REQUEST)]
        if before and asked and before[-1].recipient == f"functions.{names[asked[-1]]}":
            self._waiting = asked[-1], before[-1]

    def wait(self, request: str, call: Message) -> None:
        """A call that its user is asked about by the request of that id."""
        self._waiting = request, call

    def answer(self, item: InputItem, is_new: bool, messages: list[Message]) -> None:
        """What the user said. is_new: the model has said nothing since. Raises: ApiError if nobody asked."""
        request = item.approval_request_id
        if request in self.made:
            return
        if self._waiting is None or self._waiting[0] != request:
            raise ApiError(
                f"approval_request_id {str(request)[:64]!r} isn't that of a call that waits for approval",
                param="input",
            )
        _, call = self._waiting
        self._waiting = None
        if item.approve and is_new:  # what was said before the model went on was answered then
            self.approved = Approved(call_id_of(str(request)), call, answer_message(call, ""))
            messages.append(self.approved.result)
        else:
            refused = f"{REFUSED} {item.reason}" if item.reason else REFUSED
            messages.append(answer_message(call, _NOT_THERE if item.approve else refused))

    def settle(self, messages: list[Message]) -> None:
        """Nobody answered: the call wasn't made, and the model reads so."""
        if self._waiting:
            messages.append(answer_message(self._waiting[1], _UNANSWERED))
            self._waiting = None
