"""Which tokens harmony allows next: every header well formed, every message ended as its channel ends.

A model that samples freely writes a malformed header now and then, and the turn is lost. The possible headers
are few enough to write them all down as a trie of token ids, which the sampler follows.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from localoss.chat import harmony
from localoss.chat.grammar import Body
from localoss.chat.harmony import CALL, END, RETURN, START, TEXT_TOKENS, ChatSetup
from localoss.chat.rules import AnswerRules


class _Form(NamedTuple):
    """A header: its text, the token that ends its message, and what the body is: a channel or a recipient."""

    text: str
    ending: int
    body: str


# A step maps an allowed token to the next step, and the one that opens a message to the header's form.
_Step: TypeAlias = "dict[int, _Step | _Form]"

_BUILTIN_RECIPIENTS = {
    "python": ("python",),
    "browser": ("browser.search", "browser.open", "browser.find"),
}
_JSON_FORMS = ("", " <|constrain|>json", "<|constrain|>json", " json")


class HeaderAutomaton:
    """Follows one sequence of generated tokens and says which may come next. Chat and server share it.

    >>> automaton = HeaderAutomaton(engine.config.vocab, ChatSetup())
    >>> for token in engine.generate(tokens, mask=automaton.mask):
    ...     automaton.advance(token.id)

    It begins after the prompt's `<|start|>assistant`. `rules` narrow it further, and hold bodies to grammars.
    Raises: ModelError for a vocabulary that isn't gpt-oss's.
    """

    def __init__(self, vocab_tokens: int, setup: ChatSetup, rules: AnswerRules | None = None) -> None:
        harmony.check_vocabulary(vocab_tokens)
        self._rules = rules or AnswerRules()
        self._forms = _forms(setup, self._rules)
        self._root = _header_trie(self._forms)
        self._step: _Step | None = self._root  # None inside a message and after the turn's end
        self._ending: int | None = None  # the end token of the open message
        self._body: Body | None = None  # what holds the open message to a grammar
        self._final_only = False
        self._header_mask = np.zeros(vocab_tokens, np.uint8)
        self._allowed: list[int] = []  # the ids set in _header_mask

    def mask(self) -> npt.NDArray[np.uint8] | None:
        """Allowed ids as ones, (vocab_tokens,) u8, valid until the next call; None once the turn is over."""
        if self._step is not None:
            return self._only(self._step)
        if self._ending is None:
            return None
        if self._final_only and self._ending == END:
            return self._only([END])
        if self._body is not None:
            return self._body.mask(self._ending)
        return _body_mask(len(self._header_mask), self._ending)

    def has_mask(self, within_s: float) -> bool:
        """Whether `mask` needs no waiting for a grammar, after waiting for it so long at most."""
        return self._body is None or self._body.has_mask(within_s)

    def advance(self, token: int) -> None:
        """Take note of the token that was sampled. Raises: ValueError for one that `mask` didn't allow."""
        if self._step is not None:
            if token not in self._step:
                raise ValueError(f"token {token} cannot stand in this header")
            following = self._step[token]
            if isinstance(following, _Form):
                self._open(following)
            else:
                self._step = following
        elif token == self._ending:
            self._ending = self._body = None
            if token == END:  # a thought or a preamble: the turn goes on with another message
                self._step = {START: {_assistant_token(): self._root}}
        elif self._ending is None or token >= TEXT_TOKENS:
            raise ValueError(f"token {token} cannot stand in this message")
        elif self._body is not None:
            self._body.advance(token)

    def force_final(self) -> None:
        """End an open thought and let nothing but the final answer begin: the end of a thinking budget.

        Where the rules ask for a call, nothing but that.
        """
        self._final_only = True
        at_root = self._step is self._root
        last = CALL if self._rules.must_call else RETURN
        self._root = _header_trie(tuple(form for form in self._forms if form.ending == last))
        if at_root:
            self._step = self._root

    def _open(self, form: _Form) -> None:
        self._step, self._ending = None, form.ending
        grammar = self._rules.grammar_of(form.body)
        self._body = grammar.begin(len(self._header_mask)) if grammar else None

    def _only(self, ids: Iterable[int]) -> npt.NDArray[np.uint8]:
        self._header_mask[self._allowed] = 0
        self._allowed = list(ids)
        self._header_mask[self._allowed] = 1
        return self._header_mask


def _forms(setup: ChatSetup, rules: AnswerRules) -> tuple[_Form, ...]:
    functions = [f.name for f in setup.functions if rules.functions is None or f.name in rules.functions]
    tools = setup.builtin_tools if rules.builtin_tools else ()
    forms = [*_plain_forms(), *_call_forms(functions, tools)]
    if rules.must_call:
        forms = [form for form in forms if form.body != "final"]
    if not rules.preambles:
        forms = [form for form in forms if form.body != "commentary"]
    return tuple(forms)


def _plain_forms() -> Iterator[_Form]:
    yield _Form("<|channel|>analysis<|message|>", END, "analysis")
    yield _Form("<|channel|>commentary<|message|>", END, "commentary")
    yield _Form("<|channel|>final<|message|>", RETURN, "final")


def _call_forms(functions: Sequence[str], builtin_tools: Sequence[str]) -> Iterator[_Form]:
    """Every header of a call that may follow `<|start|>assistant`.

    A recipient stands after the role or after the channel: models write both.
    """
    for name in (f"functions.{name}" for name in functions):
        for form in _JSON_FORMS:
            yield _Form(f" to={name}<|channel|>commentary{form}<|message|>", CALL, name)
            yield _Form(f"<|channel|>commentary to={name}{form}<|message|>", CALL, name)
    for tool in builtin_tools:
        for name in _BUILTIN_RECIPIENTS[tool]:
            for form in (*_JSON_FORMS, " code"):
                yield _Form(f" to={name}<|channel|>analysis{form}<|message|>", CALL, name)
                yield _Form(f"<|channel|>analysis to={name}{form}<|message|>", CALL, name)


@functools.lru_cache(maxsize=64)
def _header_trie(forms: tuple[_Form, ...]) -> _Step:
    root: _Step = {}
    for form in forms:
        *path, last = harmony.encode_raw(form.text)
        step = root
        for token in path:
            step = step.setdefault(token, {})  # type: ignore[assignment]
        step[last] = form
    return root


@functools.lru_cache(maxsize=8)
def _body_mask(vocab_tokens: int, ending: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros(vocab_tokens, np.uint8)
    mask[:TEXT_TOKENS] = 1
    mask[ending] = 1
    mask.setflags(write=False)
    return mask


@functools.cache
def _assistant_token() -> int:
    (token,) = harmony.encode_raw("assistant")
    return token
