"""`localoss ps` and `localoss stop`: servers that run on this machine, and the models in their memory."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.options import AsJson
from localoss.cli.progress import size_text
from localoss.cli.terminal import echo
from localoss.errors import LocalossError

if TYPE_CHECKING:
    from localoss.hub.running import Running

_PATIENCE_S = 600.0  # for answers that are being made when a server is told to stop
_LOOK_S = 0.1

Port = Annotated[int | None, typer.Option("--port", metavar="N", help="Only the server that listens there.")]


def ps(as_json: AsJson = False) -> None:
    """List the servers that run on this machine, and the models in their memory."""
    from localoss.hub.running import running_servers

    listed = [_listed(server) for server in running_servers()]
    if as_json:
        print(json.dumps({"servers": listed}, ensure_ascii=False, indent=2))
        return
    if not listed:
        echo("no server runs; `localoss serve` starts one")
        return
    rows = [("SERVER", "PID", "MODEL", "SIZE", "CONTEXT", "UNTIL")]
    for one in listed:
        for model in one["models"] or [None]:
            said = _model_row(model) if model else (one["problem"] or "none in memory", "", "", "")
            rows.append((one["url"], str(one["pid"]), *said))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stop(model: options.OptionalModelName = None, port: Port = None) -> None:
    """Stop the servers that run on this machine, or take MODEL out of their memory.

    What is being answered is answered first.
    """
    from localoss.hub.running import running_servers

    servers = [one for one in running_servers() if port is None or one.port == port]
    if not servers:
        raise LocalossError(f"no server runs{'' if port is None else f' on port {port}'}; nothing to stop")
    if model is not None:
        _unload(servers, model)
        return
    for server in servers:
        server.terminate()
    ends = time.monotonic() + _PATIENCE_S
    for server in servers:
        while server.runs and time.monotonic() < ends:
            time.sleep(_LOOK_S)
        if server.runs:
            raise LocalossError(f"{server.url} (process {server.pid}) still answers; it stops after that")
        echo(f"stopped {server.url}")


def _listed(server: "Running") -> dict[str, Any]:
    """A server as --json shows it. problem: why its models aren't known."""
    models, problem = [], None
    try:
        models = server.get("/api/ps")["models"]
    except LocalossError as error:
        problem = str(error)
    return {"url": server.url, "pid": server.pid, "models": models, "problem": problem}


def _model_row(model: dict[str, Any]) -> tuple[str, str, str, str]:
    until = model["expires_at"]
    until = "stopped" if until.startswith("9999") else until[:19].replace("T", " ") + " UTC"
    return model["name"], size_text(model["size"]), f"{model['context_length']:,}", until


def _unload(servers: "list[Running]", name: str) -> None:
    """Take a model out of the memory of all that have it. Raises: LocalossError if none has."""
    from localoss.hub.registry import canonical_name

    name = canonical_name(name)
    count = 0
    for server in servers:
        if any(canonical_name(one["name"]) == name for one in server.get("/api/ps")["models"]):
            server.post("/api/generate", {"model": name, "keep_alive": 0})
            echo(f"{name} has left the memory of {server.url}")
            count += 1
    if not count:
        raise LocalossError(f"no server has {name} in memory; `localoss ps` shows what there is")
