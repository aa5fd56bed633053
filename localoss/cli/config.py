"""`localoss config`: the defaults that a user chose, and where they are from."""

import json
import re
from typing import Annotated, Any

import typer

from localoss import settings
from localoss.cli.options import AsJson
from localoss.cli.terminal import echo
from localoss.errors import UsageError

_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def config(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A setting.", autocompletion=lambda: list(settings.CONFIG_KEYS)),
    ] = None,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", help="Its new value; none takes it out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set defaults of options, which the configuration file keeps.

    Alone it lists what is set and where. LOCALOSS_<NAME> in the environment goes before the file, and an
    option on the command line before both. Presets are tables of the file: [presets.short], with system,
    effort, temperature and so on; --preset short takes them.
    """
    if name is not None:
        name = name.strip("-").replace("-", "_")
        settings.kind_of(name, "localoss config")
    if value is not None and name is not None:
        _set(name, value)
    found = settings.configured()
    shown = {key: entry for key, entry in found.items() if name in (None, key)}
    if as_json:
        entries = {key: {"value": entry[0], "from": entry[1]} for key, entry in shown.items()}
        report = {"file": str(settings.config_file()), "settings": entries, "presets": settings.presets()}
        echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for key, (chosen, where) in shown.items():
        echo(f"{key} = {_toml(chosen)}  ({where})")
    if name is not None and not shown:
        echo(f"{name} is not set")
    if name is None:
        for preset, values in settings.presets().items():
            echo(f"[presets.{preset}] {', '.join(f'{k} = {_toml(v)}' for k, v in values.items())}")
        echo(f"file: {settings.config_file()}")
        unset = [key for key in settings.CONFIG_KEYS if key not in found]
        echo(f"not set: {', '.join(unset)}")


def _set(name: str, value: str) -> None:
    """Write `name` into the file; everything else in it stays as it is. Raises: UsageError."""
    path = settings.config_file()
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        before = settings.parse_config(text, str(path))
        table = _TABLE.search(text)
        head, rest = (text[: table.start()], text[table.start() :]) if table else (text, "")
        head = re.sub(rf"^[ \t]*{name}[ \t]*=.*\n?", "", head, flags=re.MULTILINE)
        if value != "none":
            head = f"{head.rstrip()}\n{name} = {_as_toml(name, value)}\n".lstrip("\n") + (
                "\n" if rest else ""
            )
        after = settings.parse_config(head + rest, str(path))
        wanted = {key: v for key, v in before[0].items() if key != name}
        if {key: v for key, v in after[0].items() if key != name} != wanted or after[1] != before[1]:
            raise UsageError(f"{path}: {name} is written in a way that only an editor can change")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text(head + rest, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; mend or remove it") from None


def _as_toml(name: str, value: str) -> str:
    """What was typed, as setting `name` is written. Raises: UsageError."""
    return _toml(settings.from_text(value, settings.kind_of(name, "localoss config"), name))


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
