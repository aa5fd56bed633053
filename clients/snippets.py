"""The snippets of docs/clients.md, a client each: run as they stand, but for the server and the model."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "clients.md"
_GREETING = "Hello from localoss."  # what the player says to anything that gives it no order
_OTHERS = {"instructor (Python)": "\ntext='"}  # an object of the snippet's own class
_SERVER, _MODEL = "http://127.0.0.1:11435", "gpt-oss-20b"
_SNIPPET = re.compile(r"^### ([^\n]+)\n+```(sh|python|js)\n(.*?)^```$", re.M | re.S)


def snippets() -> dict[str, tuple[str, str]]:
    """Language and text of each client's snippet, by the client's name."""
    return {
        name: (language, text) for name, language, text in _SNIPPET.findall(PAGE.read_text(encoding="utf-8"))
    }


def is_answer(name: str, said: str) -> bool:
    """Whether what the snippet of client `name` wrote has the model's answer."""
    return _OTHERS.get(name, _GREETING) in said


def command_of(name: str, url: str, python: Path, modules: Path) -> list[str | Path]:
    """What runs the snippet of client `name` against the server at `url`.

    python: the client's own. modules: the folder whose node_modules JavaScript's imports come from.
    """
    language, text = snippets()[name]
    text = text.replace(_SERVER, url).replace(_MODEL, "demo")
    if language == "sh":
        return ["bash", "-ec", text]
    if language == "python":
        return [python, "-c", text]
    file = modules / "snippet.mjs"
    file.write_text(text, encoding="utf-8")
    return ["node", file]
