"""The command line. Every error that a user can meet ends here as one line on stderr."""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from localoss import settings
from localoss.cli import (
    batch,
    bench,
    chat,
    config,
    docs,
    eval,
    export,
    gpu,
    launch,
    mcp,
    merge,
    plan,
    pull,
    quantize,
    run,
    serve,
    servers,
    sessions,
    store,
    tools,
)
from localoss.cli.help import Command, Commands, reader_gone
from localoss.cli.terminal import echo
from localoss.errors import LocalossError
from quant.errors import QuantError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(run.run)
app.command(cls=Command)(chat.chat)
app.add_typer(sessions.app, name="sessions")
app.add_typer(docs.app, name="docs")
app.add_typer(mcp.app, name="mcp")
app.add_typer(tools.app, name="tools")
app.command()(pull.pull)
app.command("list")(store.list_models)
app.command()(store.show)
app.command()(store.rm)
app.command()(store.verify)
app.command(cls=Command)(plan.plan)
app.command()(gpu.gpu)
app.command(cls=Command)(serve.serve)
app.command(cls=Command)(serve.web)
app.command(cls=Command)(batch.batch)
app.command()(servers.ps)
app.command()(servers.stop)
app.command()(launch.launch)
app.command()(quantize.quantize)
app.command()(merge.merge)
app.command()(export.export)
app.command()(bench.bench)
app.command("eval")(eval.evaluate)
app.command()(config.config)


@app.command("help")
def help_command(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="A command.")] = None,
) -> None:
    """Show what there is, or the help of a command."""
    raise typer.Exit(main([*(words or []), "--help"]))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    try:
        echo(metadata.version("localoss"))
    except metadata.PackageNotFoundError:
        echo("unknown: localoss is not installed, it runs from its source")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback(invoke_without_command=True)
def commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run OpenAI's gpt-oss models on an ordinary computer."""
    if context.invoked_subcommand is None:
        echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's) name, and give the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal may lack a character. A pipe is UTF-8 in every locale, unless Python is told.
            keeps = stream.isatty() or settings.encoding_is_given()
            stream.reconfigure(errors="replace", **({} if keeps else {"encoding": "utf-8"}))
    debugging = False
    settings.close_to_others()
    try:
        debugging = settings.debug()
        code = app(arguments, prog_name="localoss", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return reader_gone()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if debugging:
            traceback.print_exception(error)
        return _explain(error)


def _explain(error: Exception) -> int:
    """Print `error` as one line and give its exit code."""
    if isinstance(error, LocalossError | QuantError):
        message, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # Typer's own: unknown commands, bad options
        message, code = error.format_message(), 2
    elif isinstance(error, OSError):
        message, code = (f"{error.filename}: {error.strerror}" if error.filename else str(error)), 1
    elif isinstance(error, MemoryError):
        message, code = f"out of memory ({error})" if str(error) else "out of memory", 1
    else:
        message, code = f"{type(error).__name__}: {error}; a bug: LOCALOSS_DEBUG=1 shows where", 1
    echo(f"error: {' '.join(message.split())}", err=True)
    return code
