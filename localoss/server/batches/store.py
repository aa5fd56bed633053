"""The files and batches that clients left with a server: a folder, which a restart finds again."""

import json
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from localoss.server.core.errors import ApiError

Object = dict[str, Any]
KEY = "localoss_key"  # in an object: the name of the key whose it is, which isn't shown
_ID = re.compile(r"(file|batch)[-_][0-9a-f]{24}")


class FileStore:
    """Objects as `ID.json`, and the bytes of files as `ID`.

    Each is for the API key alone, by its name, that brought it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new_file(self) -> tuple[str, Path]:
        """An id, and where the bytes go before `add_file`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"file-{secrets.token_hex(12)}"
        return name, self.folder / name

    def add_file(self, name: str, filename: str, purpose: str, key: str) -> Object:
        """Note the file `name`, whose bytes are there, as one of `key`'s."""
        made = {
            "id": name,
            "object": "file",
            "bytes": (self.folder / name).stat().st_size,
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            KEY: key,
        }
        self.put(made)
        return made

    def path(self, name: str, key: str) -> Path:
        """Where the bytes of a file are. Raises: ApiError 404."""
        self.get(name, key)
        path = self.folder / name
        if not path.exists():
            raise missing(name)
        return path

    def put(self, value: Object) -> None:
        """Write an object, as a whole or not at all."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{value['id']}.json"
        partial = path.with_suffix(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file)
        partial.replace(path)

    def get(self, name: str, key: str) -> Object:
        """Raises: ApiError 404 for one that isn't there, or is another key's."""
        try:
            if not _ID.fullmatch(name):
                raise FileNotFoundError
            found: Object = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            raise missing(name) from None
        if found.get(KEY, "") != key:
            raise missing(name)
        return found

    def all(self, kind: str) -> list[Object]:
        """All objects of a kind, file or batch, of all keys, the newest first."""
        found = []
        for path in self.folder.glob(f"{kind}[-_]*.json"):
            with suppress(OSError, ValueError):  # removed just now, or damaged
                found.append(json.loads(path.read_text()))
        return sorted(found, key=lambda one: (one["created_at"], one["id"]), reverse=True)

    def remove(self, name: str, key: str) -> None:
        """Raises: ApiError 404."""
        self.get(name, key)
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        (self.folder / name).unlink(missing_ok=True)


def missing(name: str) -> ApiError:
    return ApiError(f"No such object: {name[:64]}", status=404, code="not_found", param="id")
