"""Every client against the player: installs each, tries it, writes what passes into docs/clients-table.md.

`make clients` runs this; it needs npm, Python's registry and a quarter of an hour. Nothing outside --folder
and the table is written: programs get a home folder of their own. What came of a client is kept in --folder,
so that --only tries some and --resume goes on where a run was broken off.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attempts import Result, try_client
from catalogue import CLIENTS, HOSTED, HOSTED_CLIENTS, KINDS, SNIPPET, Client
from install import install
from mcp_servers import SERVERS, TRANSPORTS, try_server

HERE = Path(__file__).parent
COLUMNS = (*KINDS, SNIPPET)
_HOSTED_HEAD = "| Client | version | code_interpreter | web_search | mcp |"
_SERVERS_HEAD = "| Server | version | stdio | streamable HTTP |"
_HEAD = "| Client | version | a plain answer | a stream | a tool's round trip | its snippet |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where clients are installed")
    parser.add_argument("--table", type=Path, default=HERE.parent / "docs" / "clients-table.md")
    parser.add_argument("--only", default="", help="a client's name, or part of some")
    parser.add_argument("--resume", action="store_true", help="leave out what passed in an earlier run")
    parser.add_argument("--patience", type=int, default=120, help="seconds that one attempt may take")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    results = Results(folder / "results")
    named = [client for client in CLIENTS if client.name == chosen.only]
    named = named or [client for client in CLIENTS if chosen.only.lower() in client.name.lower()]
    hosted = [one for one in HOSTED_CLIENTS if chosen.only.lower() in one.name.lower()]
    servers = [one for one in SERVERS if chosen.only.lower() in one.client.name.lower()]
    if chosen.resume:
        named = [one for one in named if not results.passed(one, COLUMNS)]
        hosted = [one for one in hosted if not results.passed(one, HOSTED)]
        servers = [one for one in servers if not results.passed(one.client, TRANSPORTS)]
    with served(folder) as url:
        for client, columns in [(one, COLUMNS) for one in named] + [(one, HOSTED) for one in hosted]:
            kinds = HOSTED if columns is HOSTED else KINDS
            work = functools.partial(try_client, folder, client, url, chosen.patience, kinds)
            result = tried(folder, client, work)
            if not result.passes(columns):  # programs of others have bad moments, too: the table tells of one
                print(client.name, result.text(columns), "once more", sep="  ", flush=True)
                first, result = result, tried(folder, client, work)
                missed = [column for column in columns if first.word(column) == "no"]
                result.notes += [f"tried twice; the first time not: {', '.join(missed) or first.problem}"]
            results.put(client, result, columns, chosen.table)
    for server in servers:
        work = functools.partial(try_server, folder, server, chosen.patience)
        results.put(server.client, tried(folder, server.client, work), TRANSPORTS, chosen.table)
    failed = [one.name for one in named if not results.passed(one, COLUMNS)]
    failed += [one.name for one in hosted if not results.passed(one, HOSTED)]
    failed += [one.client.name for one in servers if not results.passed(one.client, TRANSPORTS)]
    count = len(named) + len(hosted) + len(servers)
    print(f"{count - len(failed)} of {count} pass", *failed, sep="\n  ")
    return bool(failed)


def tried(folder: Path, client: Client, work: Callable[[], Result]) -> Result:
    """What comes of a client once it is installed."""
    version, problem = install(folder, client)
    result = Result() if problem else work()
    result.version, result.problem = version, problem or result.problem
    return result


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server whose model is the player."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    environment = os.environ | {"LOCALOSS_HOME": str(folder / "localoss"), "WIRE": str(folder / "wire.jsonl")}
    papers = folder / "papers"
    papers.mkdir(exist_ok=True)
    (papers / "moon.md").write_text("# Moon localoss-43\n\nIts rock, localoss-43, is made of basalt.\n")
    command = [sys.executable, HERE / "player.py", "serve", "demo", "--port", "0", "--no-page"]
    command += ["--tools", "python,browser", "--docs", papers, "--mcp", folder / "served-mcp.json"]
    program = {"command": sys.executable, "args": [str(HERE.parent / "tests" / "support" / "hostile_mcp.py")]}
    (folder / "served-mcp.json").write_text(json.dumps({"mcpServers": {"place": program}}))
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not (found := re.search(r"(http://\S+)/v1", log.read_text())):
                if server.poll() is not None:
                    sys.exit(f"the server didn't start: {log.read_text()}")
                time.sleep(0.2)
            yield found[1]
        finally:
            server.terminate()
            server.wait()


class Results:
    """What came of each client, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Result | None:
        file = self._file(name)
        return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    def passed(self, client: Client, columns: Sequence[str]) -> bool:
        result = self.get(client.name)
        return result is not None and result.passes(columns)

    def put(self, client: Client, result: Result, columns: Sequence[str], table: Path) -> None:
        """Keep it, say it, and write the table anew."""
        part = self._file(client.name).with_suffix(".part")
        part.write_text(json.dumps(vars(result), indent=1), encoding="utf-8")
        part.replace(self._file(client.name))
        print(client.name, result.text(columns), sep="  ", flush=True)
        write_table(table, self)

    def _file(self, name: str) -> Path:
        return self._folder / (re.sub(r"\W+", "-", name).strip("-") + ".json")


def write_table(path: Path, results: Results) -> None:
    rows, notes = _rows(results, CLIENTS, COLUMNS)
    servers, _ = _rows(results, [one.client for one in SERVERS], TRANSPORTS)
    text = f"""\
# Clients that were tried

Written by `make clients` on {datetime.date.today()}: real clients, as npm and PyPI give them, against
`localoss serve` with an engine that plays the model (clients/player.py). A stream counts where the
answer came in several pieces, and a tool where it ran and the model was given its result. Snippets are
those of [clients.md](clients.md#a-snippet-for-each).

"""
    text += "\n".join([_HEAD, "|---" * 6 + "|", *rows]) + "\n\n" + "".join(f"- {one}\n" for one in notes)
    text += """
## Tools of the server

`code_interpreter`, `web_search` and `mcp` of the responses API, run by
`localoss serve --tools python,browser --mcp FILE`.

"""
    hosted, _ = _rows(results, HOSTED_CLIENTS, HOSTED)
    text += "\n".join([_HOSTED_HEAD, "|---" * 5 + "|", *hosted]) + "\n"
    text += """
## MCP servers

Those whose tools `localoss run --mcp` called, by a program that it starts and over HTTP. Servers that speak
stdio alone were put behind HTTP by supergateway.

"""
    text += "\n".join([_SERVERS_HEAD, "|---" * 4 + "|", *servers]) + "\n"
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _rows(results: Results, clients: Sequence[Client], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """A row for each client, and what is to be noted of them."""
    rows, notes = [], []
    for client in clients:
        result = results.get(client.name)
        words = [result.word(column) for column in columns] if result else ["not tried"] * len(columns)
        rows.append(f"| {client.name} | {result.version if result else ''} | {' | '.join(words)} |")
        told = (client.note, *(result.notes if result else ()))
        notes += [f"{client.name}: {one}" for one in told if one]
    return rows, notes


if __name__ == "__main__":
    sys.exit(main())
