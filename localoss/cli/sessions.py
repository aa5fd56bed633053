"""`localoss sessions`: the conversations that `localoss chat --session` keeps."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from localoss.cli.options import AsJson
from localoss.cli.progress import size_text
from localoss.cli.terminal import printable
from localoss.errors import UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and remove kept chats.")
SessionName = Annotated[str, typer.Argument(metavar="NAME", help="A session's name.")]


@app.command("list")
def list_sessions(as_json: AsJson = False) -> None:
    """List the sessions, the last used first."""
    from localoss.chat.session import sessions

    there = sessions()
    if as_json:
        listed = [asdict(session) | {"changed": session.changed.isoformat()} for session in there]
        typer.echo(json.dumps({"sessions": listed}, indent=2))
        return
    if not there:
        typer.echo("no session yet; `localoss chat --session NAME` begins one")
    width = max((len(session.name) for session in there), default=0)
    for session in there:
        changed = f"{session.changed.astimezone():%Y-%m-%d %H:%M}"
        what = session.problem or f"{session.messages:>4} messages  {session.model}"
        typer.echo(f"{session.name.ljust(width)}  {changed}  {size_text(session.bytes):>8}  {what}")


@app.command()
def show(name: SessionName, as_json: AsJson = False) -> None:
    """Print a session's messages."""
    from localoss.chat import transcript
    from localoss.chat.session import read_session

    conversation, model = read_session(name)
    if as_json:
        typer.echo(transcript.to_json(conversation, model).decode(), nl=False)
        return
    for message in conversation.messages:
        text = printable(message.text) if sys.stdout.isatty() else message.text
        typer.echo(f"{message.role}:\n{text}\n")


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of sessions.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove sessions for good."""
    from localoss.chat.session import read_session, remove_session

    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("give --yes to remove for good")
        for name in names:
            read_session(name)
        typer.confirm(f"remove {', '.join(names)}?", abort=True)
    freed = {name: remove_session(name) for name in names}
    if as_json:
        typer.echo(json.dumps({"removed": list(freed), "freed_bytes": sum(freed.values())}))
    else:
        typer.echo(f"removed {', '.join(freed)}: {size_text(sum(freed.values()))} freed")
