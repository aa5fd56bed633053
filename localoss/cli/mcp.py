"""`localoss mcp`: MCP servers that a file names."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from localoss.cli.options import AsJson
from localoss.cli.terminal import echo, printable, say
from localoss.errors import LocalossError

_NONE = "(the file has no server that is switched on)"
app = typer.Typer(help="MCP servers that --mcp FILE gives the model.")
McpFile = Annotated[Path, typer.Argument(metavar="FILE", help="As Claude Desktop and LM Studio have it.")]


@app.command("list")
def list_servers(file: McpFile, as_json: AsJson = False) -> None:
    """Show the servers of a file, and what was allowed them for good; nothing is started."""
    from localoss import settings
    from localoss.tools.approval import Approvals
    from localoss.tools.mcp_config import read_servers
    from localoss.tools.quoting import shell_command

    kept = Approvals(None, settings.home() / "approvals.json").kept
    servers = read_servers(file)
    policies = {
        s.name: {k: v for k, v in kept.items() if f"{k}/".startswith(f"mcp:{s.name}/")} for s in servers
    }
    if as_json:
        shown = [{"name": s.name, "runs": list(s.words), "approvals": policies[s.name]} for s in servers]
        echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    if not servers:
        say(_NONE)
    for server in servers:
        echo(f"{server.name}: {shell_command(server.words)}")
        for key, policy in policies[server.name].items():
            echo(f"  {printable(key.partition('/')[2]) or 'all of it'}: {policy}")


@app.command()
def test(file: McpFile, as_json: AsJson = False) -> None:
    """Start each server of a file, and show what it offers."""
    from localoss.tools.mcp_client import McpLoop
    from localoss.tools.mcp_config import read_servers
    from localoss.tools.mcp_link import McpLink
    from localoss.tools.mcp_tools import opened

    servers, loop, failed = read_servers(file), McpLoop(), False
    report: list[dict[str, object]] = []
    for server in servers:
        began = time.monotonic()
        try:
            tools = opened(McpLink(server, loop, say))
        except LocalossError as error:
            report.append({"name": server.name, "error": str(error)})
            failed = True
            continue
        report.append(
            {
                "name": server.name,
                "seconds": round(time.monotonic() - began, 2),
                "tools": [{"name": f.name, "description": f.description} for f in tools.functions],
                "prompts": [prompt.name for prompt in tools.prompts],
            }
        )
        tools.close()
    loop.close()
    if as_json:
        echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for entry in report:
            _show(entry)
        if not report:
            say(_NONE)
    if failed:
        raise typer.Exit(1)


def _show(entry: dict[str, object]) -> None:
    if "error" in entry:
        echo(printable(str(entry["error"])))
        return
    tools = entry["tools"]
    assert isinstance(tools, list)
    echo(f"{entry['name']}: {len(tools)} tools, ready in {entry['seconds']} s")
    for tool in tools:
        echo(f"  {tool['name']}  {printable(tool['description'])[:100]}".rstrip())
    prompts = entry["prompts"]
    if isinstance(prompts, list) and prompts:
        echo(f"  prompts: {printable(', '.join(prompts))}")
