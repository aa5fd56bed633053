"""Which folder a MODEL names."""

import difflib
import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from localoss import settings
from localoss.errors import ModelError


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """models.toml: the models that localoss knows by name, whether they are installed or not."""
    package = Path(__file__).parent
    in_wheel = package / "models.toml"
    path = in_wheel if in_wheel.exists() else package.parent / "models.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def models_folder() -> Path:
    """Where installed models lie, a folder each; it need not exist yet."""
    return settings.home() / "models"


def installed_models() -> list[str]:
    """Names of the folders in the models folder."""
    folder = models_folder()
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def find_model(name: str) -> Path:
    """The folder of `name`, which is an installed model's name or a path.

    Raises: ModelError that says what is missing, with the nearest name.
    """
    if not name.strip():
        raise ModelError("no model was named: give a model folder or a name")
    if name in installed_models():
        return models_folder() / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file: give the model's folder")
    if name in known_models():
        raise ModelError(_not_installed(name))
    if os.sep in name or (os.altsep and os.altsep in name):
        raise ModelError(f"{name}: no such folder")
    raise ModelError(_unknown(name))


def _not_installed(name: str) -> str:
    repository = known_models()[name]["repository"]
    target = models_folder() / name
    return (
        f"{name} isn't installed: download {repository} from Hugging Face, then "
        f"`localoss quantize CHECKPOINT {target}`"
    )


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, [*installed_models(), *known_models()], n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "give a folder made by `localoss quantize`"
    return f"there is no model or folder {name!r}; {hint}"
