"""What commands have in common: help by groups of options, the user's defaults, and words nearly right."""

import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from localoss import settings

# Commands whose options the configuration sets. Measurements aren't among them: they say what they measured.
CONFIGURED = ("run", "chat", "serve", "plan")
_OTHER_WORDS = {
    "ls": "list",
    "remove": "rm",
    "delete": "rm",
    "download": "pull",
    "start": "serve",
    "ask": "run",
}
# What is asked for on the command line -> the default that it stands in the place of.
_INSTEAD = {"--session": "private", "--continue": "private", "--system-file": "system"}
_GROUPS = {
    "Sampling": ("max_tokens", "think_budget", "temperature", "top_p", "top_k", "min_p", "seed"),
    "Loading": (
        "context", "kv_dtype", "memory_limit", "must_fit", "lookup", "threads", "gpu_layers", "gpu_experts",
        "gpu_memory", "gentle", "ray", "spread",
    ),
}  # fmt: skip


class Command(TyperCommand):
    """A command whose help has its many options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        sections |= {name: [] for name in _GROUPS}
        params = self.get_params(ctx)
        is_long = len(params) > 12
        for param in params:
            record = param.get_help_record(ctx)
            group = next(
                (name for name, words in _GROUPS.items() if is_long and param.name in words), "Options"
            )
            if record is not None:
                sections["Arguments" if param.param_type_name == "argument" else group].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


class Commands(TyperGroup):
    """All commands, each with the whole of its first sentence, and the user's defaults for their options."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return found or super().get_command(ctx, _OTHER_WORDS.get(cmd_name, cmd_name))

    def invoke(self, ctx: Any) -> Any:
        if ctx.parent is None and any(word in CONFIGURED for word in ctx._protected_args):
            defaults = {name: value for name, (value, _) in settings.configured().items() if name != "model"}
            for option, name in _INSTEAD.items():
                if any(word.partition("=")[0] == option for word in ctx.args):
                    defaults.pop(name, None)
            ctx.default_map = dict.fromkeys(CONFIGURED, defaults)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before Typer makes an exit code of 1 of it
            raise typer.Exit(reader_gone()) from None


def reader_gone() -> int:
    # Python flushes stdout once more as it leaves; into nothing, it cannot fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def apply_preset(context: typer.Context, name: str | None) -> str | None:
    """Make the options of preset `name` the defaults of this command's."""
    if name is not None:
        context.default_map = {**(context.default_map or {}), **settings.preset(name)}
    return name


def complete_preset(incomplete: str) -> list[str]:
    from localoss.errors import LocalossError

    try:
        return [name for name in settings.presets() if name.startswith(incomplete)]
    except LocalossError:
        return []
