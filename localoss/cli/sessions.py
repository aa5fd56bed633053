"""`localoss sessions`: the conversations that `localoss chat` keeps."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from localoss.cli.options import AsJson, complete_session
from localoss.cli.progress import size_text
from localoss.cli.terminal import echo, printable_at_terminal, say
from localoss.errors import UsageError

app = typer.Typer(rich_markup_mode=None, help="List, show, export and remove kept chats.")
SessionName = Annotated[
    str, typer.Argument(metavar="NAME", help="A session's name.", autocompletion=complete_session)
]


@app.callback(invoke_without_command=True)
def sessions_of(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show, export and remove kept chats; without a command, list them."""
    if context.invoked_subcommand is None:
        list_sessions(as_json)


@app.command("list")
def list_sessions(as_json: AsJson = False) -> None:
    """List the sessions, the last used first."""
    from localoss import settings
    from localoss.chat.session_store import sessions
    from localoss.cli.chat.kept import listing

    there = sessions()
    if as_json:
        listed = [asdict(session) | {"changed": session.changed.isoformat()} for session in there]
        echo(json.dumps({"sessions": listed}, indent=2))
        return
    if not there:
        echo("no session yet; `localoss chat` begins one")
        return
    for line in listing(there, shutil.get_terminal_size((120, 24)).columns):
        echo(line)
    total = size_text(sum(session.bytes for session in there))
    say(f"{total} in all; caches may take {size_text(settings.session_disk())} (LOCALOSS_SESSION_DISK)")


@app.command()
def show(name: SessionName, as_json: AsJson = False) -> None:
    """Print a session's messages."""
    from localoss.chat import transcript
    from localoss.chat.session_store import read_session

    conversation, model = read_session(name)
    if as_json:
        sys.stdout.write(printable_at_terminal(transcript.to_json(conversation, model).decode()))
        return
    for message in conversation.messages:
        sys.stdout.write(printable_at_terminal(f"{message.role}:\n{message.content}\n\n"))


@app.command()
def export(
    name: SessionName,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="FILE.md, .txt or .json; without it, stdout.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="md|txt|json", help="What stdout gets; md by default.")
    ] = None,
) -> None:
    """Write a session's messages to a file: Markdown, plain text or JSON."""
    from localoss.chat import export
    from localoss.chat.session_store import read_session

    conversation, model = read_session(name)
    if form is not None and form not in export.FORMATS:
        raise UsageError(f"--format is {form!r}; use {', '.join(export.FORMATS)}")
    if file is None:
        sys.stdout.write(printable_at_terminal(export.FORMATS[form or "md"](conversation, model).decode()))
    elif form is not None and form != export.format_of(file):
        raise UsageError(
            f"--format is {form}, and {file} asks for {export.format_of(file)}; leave --format out"
        )
    else:
        export.write(conversation, model, file)
        echo(f"{len(conversation.messages)} messages in {file}")


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Names of sessions.", autocompletion=complete_session),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove sessions for good."""
    from localoss.chat.session_store import read_session, remove_session

    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("give --yes to remove for good")
        for name in names:
            read_session(name)
        typer.confirm(f"remove {', '.join(names)}?", abort=True)
    freed = {name: remove_session(name) for name in names}
    if as_json:
        echo(json.dumps({"removed": list(freed), "freed_bytes": sum(freed.values())}))
    else:
        echo(f"removed {', '.join(freed)}: {size_text(sum(freed.values()))} freed")
