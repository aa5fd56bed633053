"""`localoss tools`: what the model can call, and setting up what takes more than an installation."""

import typer

from localoss.cli.terminal import echo

app = typer.Typer(help="What the model can call: see docs/tools.md.")
_TOOLS = {
    "python": "--tools python: Python in a worker without files or network, on every system",
    "cpython": "--tools cpython: CPython with its library in the system's sandbox, on Linux and macOS",
    "browser": "--tools browser: searches --docs FOLDER, and with --web the public web",
    "files": "--folder FOLDER: lists, reads and searches files; with --write, patches",
    "mcp": "--mcp FILE: tools of MCP servers",
    "functions": "--tools FILE.json: functions of your own",
}


@app.command("list")
def list_tools() -> None:
    """Show what there is, and what is missing here."""
    from localoss.errors import UsageError
    from localoss.tools.choice import missing

    for name, text in _TOOLS.items():
        try:
            problem = missing(name)
        except UsageError as error:
            problem = str(error)
        echo(f"{name:10} {text}{f' [{problem}]' if problem else ''}")


@app.command()
def setup() -> None:
    """Install numpy, sympy and matplotlib for the cpython tool, into an environment of its own."""
    from localoss.cli.terminal import say
    from localoss.tools.sandbox import SandboxedPython, set_up

    SandboxedPython().close()  # what is missing is said before anything is downloaded
    set_up(say)
