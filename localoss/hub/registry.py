"""Models by name: which ones localoss knows, which are installed, and the folder that a MODEL names."""

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from localoss import settings
from localoss.errors import ModelError, UsageError
from quant.format.config import ModelConfig, parse_config
from quant.format.hf_names import config_json
from quant.format.json_file import parse_json
from quant.format.layout import JOURNAL, MANIFEST

MODELS_FILE = "models.toml"
DEMO = "demo"  # the model that comes with localoss
_OLLAMA_NAMES = {"gpt-oss": "gpt-oss-20b", "gpt-oss:latest": "gpt-oss-20b"}
REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_NAME = re.compile(r"\w[\w.-]{0,95}", re.ASCII)
# models.toml's word for a dimension -> config.json's.
_DIMENSIONS = {
    "layers": "num_hidden_layers",
    "experts": "num_local_experts",
    "active_experts": "num_experts_per_tok",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "sliding_window": "sliding_window",
    "context_tokens": "max_position_embeddings",
}
_ROPE = {"factor": 32.0, "original_max_position_embeddings": 4096}  # every gpt-oss
ROPE_THETA = 150_000
_FORMER_KEYS = {"licence": "license"}  # models.toml of users may still have them


@dataclass(frozen=True)
class KnownModel:
    """An entry of models.toml. `repository` is on the hub; None for what comes with localoss.

    think_budget: of answers for which nobody gives one.
    `dimensions` are those of _DIMENSIONS that the entry gives; an entry of the user's may give none.
    """

    name: str
    repository: str | None = None
    description: str = ""
    license: str | None = None
    parameters: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    think_budget: int | None = None
    dimensions: dict[str, int] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig | None:
        """The architecture, where the entry tells all of it."""
        if self.dimensions.keys() != _DIMENSIONS.keys():
            return None
        published = {_DIMENSIONS[key]: value for key, value in self.dimensions.items()}
        content = config_json(published | {"rope_theta": ROPE_THETA}, _ROPE, mxfp4=True)
        return parse_config(parse_json(content), f"{MODELS_FILE}: {self.name}")


@cache
def known_models() -> dict[str, KnownModel]:
    """The models of models.toml, then those of the user's own file, which may replace some.

    Raises: UsageError that names the user's file and what is wrong in it.
    """
    package = Path(__file__).parent.parent
    in_wheel = package / MODELS_FILE
    known = _read(in_wheel if in_wheel.exists() else package.parent / MODELS_FILE)
    own = settings.config_folder() / MODELS_FILE
    return known | _read(own) if own.exists() else known


def usual_think_budget(name: str) -> int | None:
    """The thinking budget of a model's answers where nobody gives one; None for none."""
    known = known_models().get(name)
    return known.think_budget if known else None


def _read(path: Path) -> dict[str, KnownModel]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a thousand lists in each other
        raise UsageError(f"{path}: not TOML ({error}); mend or remove it") from None
    return {name: _entry(path, name, entry) for name, entry in entries.items()}


def _entry(path: Path, name: str, entry: Any) -> KnownModel:
    where = f"{path}: [{name}]"
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: a name has letters, digits, '.', '_' and '-' only")
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected a table with a repository")
    words: dict[str, type | tuple[type, ...]] = {
        "repository": str, "description": str, "license": str, "parameters": int, "think_budget": int,
        "temperature": (int, float), "top_p": (int, float), **dict.fromkeys(_DIMENSIONS, int),
    }  # fmt: skip
    entry = _with_today_s_keys(where, entry)
    for key, value in entry.items():
        if key not in words:
            raise UsageError(f"{where}: {key!r} is no key of a model; {_choose(key, words)}")
        if not isinstance(value, words[key]) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} is {value!r}, of the wrong kind")
    if "repository" in entry and not REPOSITORY.fullmatch(entry["repository"]):
        raise UsageError(f"{where}: repository is {entry['repository']!r}, expected owner/name")
    simple = {key: entry[key] for key in entry.keys() - _DIMENSIONS.keys()}
    dimensions = {key: entry[key] for key in _DIMENSIONS if key in entry}
    return KnownModel(name=name, dimensions=dimensions, **simple)


def _with_today_s_keys(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` with keys that were spelled otherwise once under today's names, and a line for each."""
    for former, key in _FORMER_KEYS.items():
        if former in entry:
            print(f"note: {where}: {former!r} is {key!r} now; the old key still works", file=sys.stderr)
            entry = {key: entry[former]} | {k: v for k, v in entry.items() if k != former}
    return entry


def _choose(key: str, words: dict[str, Any]) -> str:
    nearest = difflib.get_close_matches(key, words, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(words)}"


def models_folder() -> Path:
    """Where installed models lie, a folder each; it need not exist yet."""
    return settings.home() / "models"


def sources_folder() -> Path:
    """Where checkpoints lie while they are pulled, a folder each named as the model's."""
    return settings.home() / "sources"


def installed_models() -> list[str]:
    """Names of the models in the models folder, unfinished ones included."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    folders = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(name.replace("--", "/", 1) for name in folders)


def store_folder(name: str) -> Path:
    """Where model `name` lies in the store, or would: always a folder right in the models folder.

    Raises: UsageError for a name that could lead elsewhere.
    """
    if not (_NAME.fullmatch(name) or REPOSITORY.fullmatch(name)) or "--" in name:
        raise UsageError(
            f"{name!r} cannot be a model's name: letters, digits, '.', '_', '-', one '/' at most"
        )
    return models_folder() / name.replace("/", "--")


def name_of(folder: Path) -> str:
    """The name that opens the model in `folder` again: the store's, or the folder's path."""
    if folder.parent == models_folder():
        return folder.name.replace("--", "/", 1)
    return str(folder.resolve())


def canonical_name(name: str) -> str:
    """The name under which the store keeps `name`.

    A known model's repository stands for the model, and so does Ollama's name of it: gpt-oss:20b.
    """
    models = known_models()
    ollama = _OLLAMA_NAMES.get(name.lower(), name.lower().replace(":", "-"))
    if name not in models and ollama in models:
        return ollama
    return next((known.name for known in models.values() if known.repository == name), name)


def find_model(name: str, report: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of `name`, which is an installed model's name or a path.

    The demo model is installed by its first use; `report` gets a line before that takes a second or two.
    Raises: ModelError that says what is missing, with the nearest name.
    """
    if not name.strip():
        raise ModelError("no model was named: give a model folder or a name")
    if name == DEMO:
        from localoss.hub.bundled import install  # only now: it brings Numba

        install(models_folder() / DEMO, report)
    if canonical_name(name) in installed_models():
        folder = store_folder(canonical_name(name))
        if not (folder / MANIFEST).exists() and (folder / JOURNAL).exists():
            raise ModelError(f"{name} isn't complete: `localoss pull {name}` goes on where it stopped")
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file: give the model's folder")
    if canonical_name(name) in known_models():
        raise ModelError(f"{name} isn't installed: `localoss pull {name}` downloads it")
    if REPOSITORY.fullmatch(name):
        raise ModelError(
            f"{name}: no such folder, and not installed; `localoss pull {name}` if it is on the hub"
        )
    if os.sep in name or (os.altsep and os.altsep in name):
        raise ModelError(f"{name}: no such folder")
    raise ModelError(unknown(name, [*installed_models(), *known_models()]))


def model_and_text(words: Sequence[str | None]) -> tuple[str | None, str | None]:
    """Which of one or two words on a command line names the model, and which is the question.

    Two are both. A lone one is a model if there is one of that name or nearly so, or such a folder.
    """
    given = [word for word in words if word is not None]
    if len(given) != 1:
        return (given[0], given[1]) if given else (None, None)
    (word,) = given
    names = [*installed_models(), *known_models()]
    if not word.strip() or re.search(r"\s", word):
        return None, word
    is_path = any(mark and mark in word for mark in (os.sep, os.altsep)) or Path(word).expanduser().exists()
    if canonical_name(word) in names or is_path or difflib.get_close_matches(word, names, n=1, cutoff=0.5):
        return word, None
    return None, word


def default_model() -> str:
    """The model to open when none is named: the configured one, the only installed one, or the demo model.

    Raises: ModelError that names them if several are installed.
    """
    if "model" in (chosen := settings.configured()):
        return str(chosen["model"][0])
    others = [name for name in installed_models() if name != DEMO]
    complete = [name for name in others if (store_folder(name) / MANIFEST).exists()]
    if len(complete) > 1:
        raise ModelError(
            f"several models are installed, say which to open: {', '.join(complete)} "
            "(`localoss config model NAME` chooses one for good)"
        )
    return complete[0] if complete else DEMO


def find_installed(name: str) -> tuple[str, Path]:
    """Name and folder of an installed model, complete or not. Raises: ModelError with the nearest name."""
    canonical = canonical_name(name)
    if canonical in installed_models():
        return canonical, store_folder(canonical)
    if canonical in known_models():
        raise ModelError(f"{name} isn't installed: `localoss pull {name}` downloads it")
    raise ModelError(unknown(name, installed_models()))


def unknown(name: str, choices: list[str]) -> str:
    """What to say about a name that is none of `choices`."""
    nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "`localoss list` shows what is there"
    return f"there is no model or folder {name!r}; {hint}"


def names_beginning(start: str) -> list[str]:
    """Names of models that begin with `start`, for the shell's completion: installed ones first."""
    installed = installed_models()
    names = [*installed, *(name for name in known_models() if name not in installed)]
    return [name for name in names if name.startswith(start)]
