"""What one answer may be, beyond what harmony allows: which functions, whether to call, which JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localoss.chat.grammar import ANY_OBJECT, Budget, Grammar
from localoss.chat.grammar_limits import lenient_grammar, strict_grammar
from localoss.chat.harmony import Function
from localoss.errors import UsageError


@dataclass(frozen=True)
class AnswerRules:
    """Rules of one answer, for the header automaton.

    functions: names of those that may be called; None: all of the setup. builtin_tools: whether python and
    the browser may be called, where the setup has them. must_call: the answer ends in a
    call. preambles: whether it may speak before a call. final: what the final message is held to.
    arguments: what a call's arguments are held to, by the function's name. think_budget: after so many
    tokens of thinking the final answer must begin; None for no limit.
    """

    functions: tuple[str, ...] | None = None
    builtin_tools: bool = True
    must_call: bool = False
    preambles: bool = True
    final: Grammar | None = None
    arguments: Mapping[str, Grammar] = field(default_factory=dict)
    think_budget: int | None = None

    def grammar_of(self, body: str) -> Grammar | None:
        """The grammar of a message's body: "final", or the recipient of a call."""
        return self.final if body == "final" else self.arguments.get(body.removeprefix("functions."))


def argument_grammars(
    functions: Sequence[Function], strict: Sequence[str] = (), budget: Budget | None = None
) -> dict[str, Grammar]:
    """A grammar for the arguments of each function; `strict` names those whose every keyword is followed.

    budget: what all of them together may take; None for each its own.

    Raises: UsageError that names the function whose schema can't be followed.
    """
    grammars = {}
    for function in functions:
        schema = function.parameters or ANY_OBJECT
        try:
            if function.name in strict:
                grammars[function.name] = strict_grammar(schema, budget)
            else:
                grammars[function.name] = lenient_grammar(f"function {function.name}", schema, budget)
        except UsageError as error:
            raise UsageError(f"function {function.name!r}: {error}") from None
    return grammars
