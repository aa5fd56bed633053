"""Installs a client from npm or PyPI into the folder of the run, unless it is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

from catalogue import Client

_PATIENCE_S = 900


def install(folder: Path, client: Client) -> tuple[str, str]:
    """The version that is there, and what went wrong, if anything did."""
    missing = [package for package in client.packages if not _is_installed(folder, client, package)]
    problem = ""
    if missing:
        try:
            _fetch(folder, client, missing)
        except subprocess.CalledProcessError as error:
            problem = f"can't be installed: {(error.stderr or '').strip().splitlines()[-1:]}"
        except subprocess.TimeoutExpired:
            problem = f"can't be installed within {_PATIENCE_S} s"
    return _version(folder, client, client.packages[0]), problem


def _is_installed(folder: Path, client: Client, package: str) -> bool:
    """Whether it was installed for itself: what came with another client may be of an older version."""
    if client.registry == "npm":
        wanted = folder / client.place / "package.json"
        known = json.loads(wanted.read_text(encoding="utf-8")) if wanted.exists() else {}
        if package not in known.get("dependencies", {}):
            return False
    return bool(_version(folder, client, package))


def python_of(folder: Path, client: Client) -> Path:
    return folder / client.place / "bin" / "python"


def programs_of(folder: Path, client: Client) -> Path:
    """The folder that its programs are in."""
    return (
        folder / "js" / "node_modules" / ".bin"
        if client.registry == "npm"
        else python_of(folder, client).parent
    )


def _fetch(folder: Path, client: Client, packages: list[str]) -> None:
    if client.registry == "npm":
        place = folder / client.place
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "package.json").exists():
            (place / "package.json").write_text('{"private": true, "type": "module"}')
        newest = [f"{package}@latest" for package in packages]
        _run(["npm", "install", "--no-audit", "--no-fund", *newest], place)
        return
    python = python_of(folder, client)
    if not python.exists():
        _run([sys.executable, "-m", "venv", python.parent.parent], folder)
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], folder)


def _run(command: list, place: Path) -> None:
    subprocess.run(command, check=True, cwd=place, timeout=_PATIENCE_S, capture_output=True, text=True)


def _version(folder: Path, client: Client, package: str) -> str:
    """Of an installed package; empty if it isn't there."""
    if client.registry == "npm":
        about = folder / "js" / "node_modules" / package / "package.json"
        return str(json.loads(about.read_text(encoding="utf-8"))["version"]) if about.exists() else ""
    name = re.sub(r"[-_.]+", "_", package.split("[")[0]).lower()
    for found in (python_of(folder, client).parent.parent / "lib").glob("python*/site-packages/*.dist-info"):
        known, _, version = found.name.removesuffix(".dist-info").rpartition("-")
        if re.sub(r"[-_.]+", "_", known).lower() == name:
            return version
    return ""
