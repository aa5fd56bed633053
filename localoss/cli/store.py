"""`localoss list`, `show`, `rm` and `verify`: the models on this machine."""

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli.options import AsJson, ModelName, OptionalModelName
from localoss.cli.progress import progress_shown, size_text
from localoss.cli.terminal import echo, say
from localoss.errors import UsageError

if TYPE_CHECKING:
    from localoss.hub.registry import KnownModel
    from localoss.hub.store import FileState, Installed
    from quant.format.config import ModelConfig
    from quant.format.manifest import Dtypes


def list_models(as_json: AsJson = False) -> None:
    """List the models on this machine, and those that `localoss pull` knows by name."""
    from localoss.hub import store
    from localoss.hub.registry import DEMO, known_models

    models = store.installed()
    there = {model.name for model in models}
    others = [known for known in known_models().values() if known.name not in there]
    if as_json:
        listed = [_model_json(model) for model in models]
        _print_json({"models": listed, "not_installed": [_known_json(known) for known in others]})
        return
    to_pull = [known for known in others if known.repository]
    rows = [("NAME", "SIZE", "WEIGHTS", "CHANGED", "MEMORY")] if models else []
    for model in models:
        fit = _fit_of(model)
        note = f"{model.state}: {model.problem}" if fit is None else fit["verdict"]
        size, changed = size_text(model.total_bytes), f"{model.changed.astimezone():%Y-%m-%d %H:%M}"
        rows.append((model.name, size, _weights(model), changed, note))
    _print_table(rows)
    if to_pull:
        echo("\nnot installed (`localoss pull NAME`):" if models else "nothing installed yet; to pull:")
        _print_table([_known_row(known) for known in to_pull])
    if DEMO not in there:
        echo(f"\n`localoss chat {DEMO}` needs no pull: {known_models()[DEMO].description}")


def show(model: ModelName, as_json: AsJson = False) -> None:
    """Show what a model is: architecture, where it came from, sizes by class of weights."""
    from localoss.hub import registry, store

    name = registry.canonical_name(model)
    if name == registry.DEMO:
        registry.find_model(name, say)  # its first use
    if name not in registry.installed_models() and name in registry.known_models():
        known = registry.known_models()[name]
        _print_json(_known_json(known)) if as_json else _show_known(known)
        return
    if name in registry.installed_models():
        described = store.describe(name)
    else:
        described = store.describe_folder(registry.find_model(model))
    _print_json(_model_json(described) | _details(described)) if as_json else _show_model(described)


def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of installed models.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove models from this machine, with what an unfinished pull of them left."""
    from localoss.hub import store

    sizes = dict(store.removable(model) for model in models)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"rm would free {size_text(sum(sizes.values()))}; give --yes to remove for good")
        typer.confirm(f"remove {', '.join(sizes)} and free {size_text(sum(sizes.values()))}?", abort=True)
    freed = {name: store.remove(name) for name in sizes}
    if as_json:
        _print_json({"removed": list(freed), "freed_bytes": sum(freed.values())})
    else:
        echo(f"removed {', '.join(freed)}: {size_text(sum(freed.values()))} freed")


def verify(model: OptionalModelName = None, as_json: AsJson = False) -> None:
    """Check every file of a model against its sha256; without MODEL, of all of them.

    Says which file is bad and how to mend it; the exit code is 1 then.
    """
    from localoss.hub import registry, store

    if model is None:
        folders = {name: registry.store_folder(name) for name in registry.installed_models()}
        if not folders:
            raise UsageError("no model is installed; `localoss pull gpt-oss-20b` is a start")
    else:
        folders = {model: registry.find_model(model)}
    reports = [_verified(name, folder) for name, folder in folders.items()]
    if as_json:
        _print_json(reports if model is None else reports[0])
    for report in reports if not as_json else []:
        for file in report["files"]:
            if file["state"] != store.OK:
                echo(f"{report['model']}: {file['name']}: {file['state']} {file['detail']}".rstrip())
        if report["ok"]:
            size = size_text(sum(file["bytes"] for file in report["files"]))
            echo(f"{report['model']}: all {len(report['files'])} files are whole ({size})")
        else:
            echo(f"{report['model']}: {report['remedy']}")
    if not all(report["ok"] for report in reports):
        raise typer.Exit(1)


def _verified(name: str, folder: Path) -> dict[str, Any]:
    from localoss.hub import store
    from quant.errors import QuantError

    files: list[FileState] = []
    problem = None
    done_bytes = 0
    with progress_shown(f"verify {name}") as progress:
        try:
            total_bytes = store.read_total_bytes(folder)

            def advance(size: int) -> None:
                nonlocal done_bytes
                done_bytes += size
                progress(done_bytes, total_bytes)

            files = list(store.verify(folder, advance))
        except QuantError as error:
            problem = str(error)
    is_whole = problem is None and all(file.state == store.OK for file in files)
    report = {"model": name, "folder": str(folder), "ok": is_whole, "files": [asdict(file) for file in files]}
    return report if is_whole else report | {"remedy": problem or store.remedy(name, folder)}


# What is printed


def _model_json(model: "Installed") -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": model.name,
        "folder": str(model.folder),
        "state": model.state,
        "problem": model.problem,
        "total_bytes": model.total_bytes,
        "changed": model.changed.isoformat(timespec="seconds"),
        "dtypes": asdict(manifest.dtypes) if manifest else None,
        "source": asdict(manifest.source) if manifest else None,
        "localoss_version": manifest.localoss_version if manifest else None,
        "memory": _fit_of(model),
    }


def _known_json(known: "KnownModel") -> dict[str, Any]:
    from quant.format.sizes import expected_sizes

    told = {key: value for key, value in asdict(known).items() if value is not None}
    if known.config is None:
        return told
    return told | asdict(expected_sizes(known.config)) | {"memory": _fit(known.config)}


def _known_row(known: "KnownModel") -> tuple[str, ...]:
    from quant.format.sizes import expected_sizes

    if known.config is None:
        return f"  {known.name}", "", "", known.description
    size = size_text(expected_sizes(known.config).download_bytes)
    return f"  {known.name}", size, _fit(known.config)["verdict"], known.description


def _fit_of(model: "Installed") -> dict[str, Any] | None:
    """Whether an installed model fits this machine; None for one that isn't whole."""
    from quant.errors import QuantError
    from quant.format.config import read_config

    if model.manifest is None:
        return None
    try:
        return _fit(read_config(model.folder / "config.json"), model.manifest.dtypes)
    except QuantError:  # a damaged config.json: `verify` tells
        return None


def _fit(config: "ModelConfig", dtypes: "Dtypes | None" = None) -> dict[str, Any]:
    """Whether a model fits the memory of this machine, with next to nothing else running on it."""
    from localoss.plan.machine import this_machine
    from localoss.plan.memory import Plan
    from quant.format.manifest import Dtypes

    machine = this_machine()
    plan = Plan(config, dtypes or Dtypes())
    limit_bytes = machine.idle_limit_bytes
    return {
        "verdict": plan.verdict(limit_bytes),
        "context_tokens": plan.context_tokens,
        "total_bytes": plan.total_bytes,
        "longest_context_tokens": plan.longest_context(limit_bytes),
        "machine_bytes": machine.total_bytes,
    }


def _fit_rows(fit: dict[str, Any]) -> list[tuple[str, str]]:
    needs = f"{size_text(fit['total_bytes'])} with a context of {fit['context_tokens']:,}"
    longest = f", {fit['longest_context_tokens']:,} at most" if fit["longest_context_tokens"] else ""
    verdict = {"fits": "fits", "from disk": "runs slowly, from the disk", "too large": "too large"}
    where = f"this machine's {size_text(fit['machine_bytes'])}"
    return [("memory", f"{needs}{longest}: {verdict[fit['verdict']]} in {where}")]


def _details(model: "Installed") -> dict[str, Any]:
    from quant.format.config import read_config
    from quant.format.sizes import class_bytes

    if model.manifest is None:
        return {}
    config = read_config(model.folder / "config.json")
    return {"architecture": asdict(config), "class_bytes": class_bytes(config, model.manifest.dtypes)}


def _weights(model: "Installed") -> str:
    """The number formats of a model in a few words: experts mxfp4, the rest int8."""
    if model.manifest is None:
        return "–"
    dtypes = asdict(model.manifest.dtypes)
    experts = dtypes.pop("experts")
    rest = sorted(set(dtypes.values()))
    return f"{experts}, rest {rest[0]}" if len(rest) == 1 else "/".join([experts, *dtypes.values()])


def _show_model(model: "Installed") -> None:
    from localoss.hub.registry import known_models
    from quant.format.config import read_config
    from quant.format.sizes import class_bytes

    known = known_models().get(model.name)
    rows = [("name", model.name), *([("what", known.description)] if known and known.description else [])]
    rows += [("folder", str(model.folder)), ("state", model.state)]
    if model.manifest is None:
        _print_table([*rows, ("", model.problem or "")])
        return
    config, version = read_config(model.folder / "config.json"), model.manifest.localoss_version
    rows += [("made from", model.manifest.source.name)]
    rows += [("made", f"{model.changed.astimezone():%Y-%m-%d %H:%M} by localoss {version}")]
    rows += [*_architecture(config), *_fit_rows(_fit(config, model.manifest.dtypes))]
    _print_table(rows)
    dtypes = asdict(model.manifest.dtypes)
    sizes = class_bytes(config, model.manifest.dtypes)
    echo("")
    _print_table(
        [
            *((name, dtypes.get(name, ""), size_text(size)) for name, size in sizes.items()),
            ("in all, on disk", "", size_text(model.total_bytes)),
        ]
    )


def _show_known(known: "KnownModel") -> None:
    from quant.format.sizes import expected_sizes

    rows = [("name", known.name), ("state", "not installed")]
    rows += [("what", known.description)] if known.description else []
    rows += [("repository", known.repository)] if known.repository else []
    rows += [("license", known.license)] if known.license else []
    rows += [("parameters", f"{known.parameters / 1e9:.1f} billion")] if known.parameters else []
    if known.config:
        sizes = expected_sizes(known.config)
        rows += [("to download", size_text(sizes.download_bytes)), ("on disk", size_text(sizes.model_bytes))]
        rows += [*_architecture(known.config), *_fit_rows(_fit(known.config))]
    rows += [("sampling", f"temperature {known.temperature:g}, top-p {known.top_p:g}")]
    _print_table(rows)


def _architecture(config: "ModelConfig") -> list[tuple[str, str]]:
    return [
        ("layers", f"{config.layers}, hidden size {config.hidden}"),
        ("experts", f"{config.experts}, {config.active_experts} active, intermediate {config.intermediate}"),
        ("attention", f"{config.heads} heads, {config.kv_heads} key/value heads of {config.head_dim}"),
        ("context", f"{config.context:,} tokens, every other layer slides over {config.sliding_window}"),
        ("vocabulary", f"{config.vocab:,}"),
    ]


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their longest entry, two spaces apart: plain text, at a terminal and in a pipe."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > (columns := get_terminal_size().columns):
        for row in rows:  # a few short lines each, broken between words, where the table would wrap
            echo(row[0])
            more = " · ".join(cell for cell in row[1:] if cell)
            echo(textwrap.fill(more, columns - 1, initial_indent="  ", subsequent_indent="  "))
        return
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo("  ".join(cells).rstrip())


def _print_json(value: Any) -> None:
    echo(json.dumps(value, indent=2, default=str))
