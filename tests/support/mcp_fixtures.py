"""A server whose operator names an MCP server over HTTP and a program: fixtures, and asking it."""

import contextlib
import json
import sys
from pathlib import Path

import pytest

from localoss.chat import harmony
from localoss.server.core.hosted import HostedTools
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions
from support.live_server import MODEL, live
from support.mcp_site import mcp_site
from support.scripted import ScriptedEngine

PROGRAM = str(Path(__file__).parent / "hostile_mcp.py")


@pytest.fixture(scope="module")
def site():
    with mcp_site() as site:
        yield site


@pytest.fixture
def served(site, tmp_path):
    """Start a server whose operator names the site, and a program; it and its engine."""
    site.called.clear()
    site.headers.clear()
    file = tmp_path / "mcp.json"
    program = {"command": sys.executable, "args": [PROGRAM, "tools=echo,evil,hang"]}
    named = {"url": site.url, "headers": {"X-Operator": "secret"}}
    file.write_text(json.dumps({"mcpServers": {"operators": named, "program": program}}))
    with contextlib.ExitStack() as stack:

        def start(*answers, mcp=file, policies=None, **options):
            engine = ScriptedEngine(list(answers), context_tokens=32_768)
            approvals = Approvals(None, None)
            for key, policy in (policies or {}).items():
                approvals.set(key, policy)
            tools = HostedTools(ToolOptions(mcp=mcp), approvals) if mcp else None
            if tools:
                stack.callback(tools.close)
            server = stack.enter_context(live(engine, **options))
            server.service.hosted = server.models.hosted = tools
            return server, engine

        yield start


def tool(site, **fields):
    return {"type": "mcp", "server_label": "site", "server_url": site.url, **fields}


def respond(server, tools, input="Hi", **options):
    return server.client().responses.create(model=MODEL, input=input, tools=tools, **options)


def prompts(engine):
    return [harmony.encoding().decode(prompt) for prompt in engine.prompts]
