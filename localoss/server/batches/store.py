"""The files and batches that clients left with a server: a folder, which a restart finds again."""

import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from localoss.server.core.errors import ApiError

Object = dict[str, Any]
_ID = re.compile(r"(file|batch)[-_][0-9a-f]{24}")


class FileStore:
    """Objects as `ID.json`, and the bytes of files as `ID`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new_file(self) -> tuple[str, Path]:
        """An id, and where the bytes go before `add_file`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"file-{secrets.token_hex(12)}"
        return name, self.folder / name

    def add_file(self, name: str, filename: str, purpose: str) -> Object:
        """Note the file `name`, whose bytes are there."""
        made = {
            "id": name,
            "object": "file",
            "bytes": self.path(name).stat().st_size,
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        self.put(made)
        return made

    def path(self, name: str) -> Path:
        """Where the bytes of a file are. Raises: ApiError 404."""
        path = self.folder / name
        if not (_ID.fullmatch(name) and path.exists()):
            raise _missing(name)
        return path

    def put(self, value: Object) -> None:
        """Write an object, as a whole or not at all."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{value['id']}.json"
        partial = path.with_suffix(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file)
        partial.replace(path)

    def get(self, name: str) -> Object:
        """Raises: ApiError 404."""
        try:
            if not _ID.fullmatch(name):
                raise FileNotFoundError
            found: Object = json.loads((self.folder / f"{name}.json").read_text())
            return found
        except (OSError, ValueError):
            raise _missing(name) from None

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind, file or batch, the newest first."""
        found = [self.get(path.stem) for path in self.folder.glob(f"{kind}[-_]*.json")]
        return sorted(found, key=lambda one: (one["created_at"], one["id"]), reverse=True)

    def remove(self, name: str) -> None:
        """Raises: ApiError 404."""
        self.get(name)
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        (self.folder / name).unlink(missing_ok=True)


def _missing(name: str) -> ApiError:
    return ApiError(f"No such object: {name[:64]}", status=404, code="not_found", param="id")
