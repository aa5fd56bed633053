"""What can be typed in a chat besides messages."""

import difflib
import json
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from localoss.chat import harmony
from localoss.chat.branches import another_way
from localoss.cli.chat import attachments, kept, outside, tooling
from localoss.cli.chat.experts import heat_map
from localoss.cli.chat.figures import context_parts, context_picture, turns_table
from localoss.cli.chat.repl import Chat, Leave, shortened
from localoss.cli.terminal import printable, say
from localoss.errors import LocalossError, UsageError
from localoss.hub.registry import find_model, installed_models
from quant.errors import QuantError

_NOTHING = ("none", "off")
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 100),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1 << 31),
    "min_p": (float, 0, 1),
    "seed": (int, 0, 1 << 63),
    "max_tokens": (int, 1, 1 << 31),
    "think_budget": (int, 0, 1 << 31),
}
_OPTIONAL = ("seed", "max_tokens", "think_budget")


@dataclass(frozen=True)
class Command:
    """usage: what stands after the name. choices: words for it, None for a file name. waits: until there is a
    model.
    """

    run: Callable[[Chat, str], None]
    usage: str
    help: str
    choices: Callable[[], Iterable[str]] | None = lambda: ()
    waits: bool = True


def dispatch(chat: Chat, name: str, argument: str) -> None:
    """Carry out a command. Raises: Leave; LocalossError, QuantError with a line to show."""
    name = {"?": "help", "quit": "exit", "bye": "exit"}.get(name, name)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{nearest[0]}?" if nearest else "/help lists what there is"
        raise UsageError(f"there is no /{name}; {hint} (a line that begins with a blank is sent as it is)")
    if COMMANDS[name].waits:
        chat.ready()
    COMMANDS[name].run(chat, argument)


def choices(name: str) -> Iterable[str] | None:
    """Words that may stand after a command; None for the name of a file."""
    command = COMMANDS.get(name)
    if command is None:
        return ()
    return None if command.choices is None else command.choices()


def _effort(chat: Chat, effort: str) -> None:
    if effort:
        chat.conversation.set_effort(effort)
    say(f"(effort {chat.conversation.setup.effort})")


def _think(chat: Chat, what: str) -> None:
    if what in ("show", "hide"):
        chat.show_thinking = what == "show"
    elif what == "last":
        say(chat.last_thinking or "(the last answer had no thinking)")
        return
    elif what:
        raise UsageError("/think show, /think hide, or /think last for the thinking before the last answer")
    say(f"(thinking is {'shown' if chat.show_thinking else 'hidden'})")


def _system(chat: Chat, text: str) -> None:
    if text in ('""', "''", "none"):
        chat.conversation.set_instructions(None)
    elif text:
        chat.conversation.set_instructions(text)
    say(f"(instructions: {chat.conversation.setup.instructions or 'none'})")


def _trim(chat: Chat, _: str) -> None:
    count = chat.trim()
    used = f"{chat.used_tokens:,} of {chat.engine.context_tokens:,} tokens"
    if count:
        say(f"(the model no longer sees the {chat.conversation.left_out} oldest messages; {used})")
    else:
        say(f"(nothing was left out: {used})")


def _regen(chat: Chat, _: str) -> None:
    if not chat.conversation.asked:
        raise UsageError("there is nothing to answer yet")
    with another_way(chat.conversation, chat.conversation.asked - 1, is_answer=True):
        chat.reply()


def _undo(chat: Chat, _: str) -> None:
    message = chat.conversation.take_back()
    if message is None:
        raise UsageError("there is nothing to take back")
    files = ", ".join(file.name for file in message.files)
    say(f"(taken back: {shortened(message.text)}{f', with {printable(files)}' if files else ''})")


def _edit(chat: Chat, _: str) -> None:
    asked = chat.conversation.last_asked
    before = asked.text if asked else ""
    after = outside.edit(before).strip("\n").rstrip()
    if after == before or not after:
        say("(nothing was changed)")
        return
    if asked is None:
        chat.ask(after)
        return
    with another_way(chat.conversation, chat.conversation.asked - 1, is_answer=False):
        chat.ask(after, asked.files)


def _stats(chat: Chat, _: str) -> None:
    say(turns_table(chat.turns, shutil.get_terminal_size().columns))
    device = chat.engine.device_figures()
    if device:
        say(device["summary"])
    if experts := chat.engine.expert_figures():
        say(experts["summary"])


def _context(chat: Chat, _: str) -> None:
    waiting = "\n\n".join(one.file.text for one in chat.attachments)
    say(context_picture(context_parts(chat.conversation, waiting), chat.engine.context_tokens))
    if chat.conversation.left_out:
        say(f"{chat.conversation.left_out} oldest messages are left out (--trim oldest)")


def _experts(chat: Chat, _: str) -> None:
    if chat.server:
        raise UsageError("a server doesn't say which experts answered; localoss chat --no-server does")
    if chat.expert_counts is None:
        raise UsageError("there is no answer yet, whose experts could be shown")
    for line in heat_map(chat.expert_counts, shutil.get_terminal_size().columns):
        say(line)


def _set(chat: Chat, argument: str) -> None:
    argument = argument.removeprefix("parameter ").lstrip()  # as Ollama has it
    name, _, value = argument.replace("=", " ").partition(" ")
    name, value = name.strip("-").replace("-", "_"), value.strip()
    if not name:
        for option in _NUMBERS:
            say(f"{option} {_shown(_option(chat, option))}")
        say(f"trim {'oldest' if chat.trims else 'none'}")
    elif name == "trim" and value in ("oldest", "", *_NOTHING):
        chat.trims = value == "oldest" if value else chat.trims
        say(f"(trim {'oldest' if chat.trims else 'none'})")
    elif name not in _NUMBERS:
        nearest = difflib.get_close_matches(name, [*_NUMBERS, "trim"], n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(_NUMBERS)}, trim"
        raise UsageError(f"there is no option {argument.split()[0]!r}; {hint}")
    else:
        if value and name == "think_budget":
            chat.think_budget = _number(name, value)  # type: ignore[assignment]
        elif value:
            chat.sampling = replace(chat.sampling, **{name: _number(name, value)})  # type: ignore[arg-type]
        say(f"({name} {_shown(_option(chat, name))})")


def _option(chat: Chat, name: str) -> float | None:
    value: float | None = getattr(chat if name == "think_budget" else chat.sampling, name)
    return value


def _number(name: str, value: str) -> float | None:
    kind, least, most = _NUMBERS[name]
    if name in _OPTIONAL and value in _NOTHING:
        return None
    try:
        number: float = kind(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most or (name == "top_p" and number == 0):
        meant = "a whole number" if kind is int else "a number"
        more = ", or none" if name in _OPTIONAL else ""
        bounds = f"from {least:g}" + (f" to {most:g}" if most <= 100 else "")
        raise UsageError(f"{name} is {value!r}; give {meant} {bounds}{more}")
    return number


def _model(chat: Chat, name: str) -> None:
    if not name:
        say(f"({chat.folder}; installed: {', '.join(installed_models()) or 'none'})")
        return
    find_model(name)  # before the one in use is given up: two may not fit into memory
    before = chat.folder
    chat.engine = chat.sequence = None  # type: ignore[assignment]
    try:
        chat.use(*chat.load(name))
    except (LocalossError, QuantError, OSError, KeyboardInterrupt):
        chat.use(*chat.load(str(before)))
        say(f"({before.name} stays)")
        raise
    say(f"({chat.status()})")


def _copy(chat: Chat, _: str) -> None:
    answer = chat.conversation.last_answer
    if not answer:
        raise UsageError("there is no answer to copy yet")
    say(f"(the last answer, {len(answer):,} characters, copied by {outside.copy(answer)})")


def _help(_chat: Chat, _: str) -> None:
    usages = {f"/{name} {command.usage}".strip(): command.help for name, command in COMMANDS.items()}
    columns = shutil.get_terminal_size().columns
    width = max(map(len, usages)) + 2
    for usage, text in usages.items():
        first, rest = usage.ljust(width), " " * width
        if columns < 2 * width:
            say(usage)
            first = rest = "    "
        say(textwrap.fill(text, columns, initial_indent=first, subsequent_indent=rest))
    say("\n".join(textwrap.fill(line, columns) for line in _KEYS.split("\n")))


def _exit(_chat: Chat, _: str) -> None:
    raise Leave


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


_KEYS = """\
Enter sends, Alt-Enter begins a new line; between \"\"\" and \"\"\" Enter does, too.
Ctrl-X Ctrl-E writes the line in $EDITOR, Ctrl-R looks for an earlier one, Tab completes.
Ctrl-C stops an answer, or clears the line; Ctrl-L clears the screen; Ctrl-D leaves."""

COMMANDS = {
    "effort": Command(
        _effort, "low|medium|high", "how long the model thinks; alone: how long now", lambda: harmony.EFFORTS
    ),
    "think": Command(
        _think,
        "show|hide|last",
        "show or hide thinking, or show that of the last answer",
        lambda: ("show", "hide", "last"),
    ),
    "system": Command(_system, "TEXT", 'instructions to the model; "" for none, alone: what they are'),
    "clear": Command(kept.clear, "", "a new conversation; the one before is kept"),
    "regen": Command(_regen, "", "another answer to your last message"),
    "undo": Command(_undo, "", "take your last message and its answer back"),
    "edit": Command(_edit, "", "change your last message in $EDITOR and send it again"),
    "read": Command(
        attachments.read,
        "FILE",
        "a text, PDF or Word file, a folder or a pattern goes with your next message; -: what waits",
        None,
    ),
    "drop": Command(attachments.drop, "NAME", "a file that waits does not go with it; all: none does"),
    "trim": Command(_trim, "", "the model no longer sees the oldest messages, so that others have room"),
    "stats": Command(_stats, "", "tokens and speed of each turn"),
    "context": Command(_context, "", "what fills the context"),
    "experts": Command(_experts, "", "which experts the last answer went through, layer by layer"),
    "session": Command(kept.session, "NAME", "name this session; alone: which one it is"),
    "sessions": Command(
        kept.list_or_open, "NAME", "go on with another session; alone: all of them", kept.names
    ),
    "save": Command(kept.save, "FILE", "write the conversation to FILE.md, .txt or .json", None),
    "load": Command(kept.load, "FILE", "go on from a JSON file that /save wrote", None),
    "set": Command(
        _set, "NAME VALUE", "sampling options as on the command line; alone: all of them", lambda: _NUMBERS
    ),
    "model": Command(_model, "NAME", "go on with another model; alone: which one this is", installed_models),
    "tools": Command(
        tooling.tools,
        "NAME POLICY|last",
        "what the model may call, and what is asked first: ask, always, never; last: the last calls",
        tooling.names,
        waits=False,
    ),
    "prompt": Command(tooling.prompt, "NAME A=…", "send a prompt of an MCP server; alone: which there are"),
    "copy": Command(_copy, "", "the last answer to the clipboard"),
    "help": Command(_help, "", "this list", waits=False),
    "exit": Command(_exit, "", "leave", waits=False),
}
