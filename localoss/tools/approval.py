"""Which calls run without a question: what users said, per tool and per server, and keep saying."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localoss.errors import LocalossError, UsageError
from quant.format import disk

Policy = Literal["ask", "always", "never"]
POLICIES: tuple[Policy, ...] = ("ask", "always", "never")
REFUSED = "The user did not allow this call."
_FORMAT = "localoss approvals 1"


@dataclass(frozen=True)
class Question:
    """What is asked before a call. key: what an answer for good holds for, as mcp:SERVER/TOOL.

    text: exactly what would run, quoted as a shell would need it. detail: more of it, such as a diff.
    """

    key: str
    text: str
    detail: str = ""


Said = Literal["yes", "no", "always", "never"]
Ask = Callable[[Question], Said]


class Approvals:
    """What may run, by the keys of questions. Only users change it: nothing that a tool gives gets here."""

    def __init__(self, ask: Ask | None, path: Path | None) -> None:
        """ask: puts a question to the user; None if nobody is there. path: where answers for good are kept.

        Raises: UsageError for a file that is none.
        """
        self._ask, self._path = ask, path
        self._kept: dict[str, Policy] = _read(path) if path else {}

    @property
    def kept(self) -> dict[str, Policy]:
        return dict(self._kept)

    def policy(self, key: str) -> Policy:
        """What holds for `key`: its own policy, else that of its server, else to ask."""
        server = key.partition("/")[0]
        return self._kept.get(key) or self._kept.get(server) or "ask"

    def set(self, key: str, policy: Policy) -> None:
        """From now on, and for good. Raises: LocalossError if it can't be written; it holds until the end."""
        server = key.partition("/")[0]
        inherited = self._kept.get(server, "ask") if server != key else "ask"
        if policy == inherited == "ask":
            self._kept.pop(key, None)
        else:
            self._kept[key] = policy
        if self._path:
            _write(self._path, self._kept)

    def refusal(self, question: Question | None, ask: Ask | None = None) -> str | None:
        """None if it may run, otherwise what the model reads. ask: who is asked this time, if not as always.

        Raises: KeyboardInterrupt at the question.
        """
        ask = ask or self._ask
        if question is None:
            return None
        policy = self.policy(question.key)
        if policy == "ask":
            said = ask(question) if ask else "no"
            if said in ("always", "never"):
                with contextlib.suppress(LocalossError):  # it holds in this program all the same
                    self.set(question.key, "always" if said == "always" else "never")
            return None if said in ("yes", "always") else REFUSED
        return None if policy == "always" else REFUSED


def _read(path: Path) -> dict[str, Policy]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        policies = dict(document["policies"])
        if not all(isinstance(key, str) and value in POLICIES for key, value in policies.items()):
            raise ValueError("a policy is none of ask, always, never")
        return policies
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not the approvals of localoss ({error}); mend or remove it") from None


def _write(path: Path, policies: dict[str, Policy]) -> None:
    content = json.dumps({"format": _FORMAT, "policies": policies}, ensure_ascii=False, indent=1).encode()
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_file(new, content + b"\n")
        disk.replace(new, path)
    except OSError as error:
        raise LocalossError(f"{path}: approvals can't be kept ({error.strerror or error})") from None
