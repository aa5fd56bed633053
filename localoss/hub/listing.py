"""The hub's listing of a repository: read within bounds, and believed only where it has the right shape."""

import json
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

# One file takes about 250 bytes of it, and thirty times as much once it is parsed.
_MOST_BYTES = 8 << 20
_MOST_S = 120.0  # for all of it: the time between two of its bytes has a limit of its own


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it: size in bytes; sha256 of large files, git's sha1 of small ones."""

    name: str
    size: int  # -1 where it isn't told
    sha256: str | None
    git_sha1: str | None


def read_listing(
    endpoint: str, repository: str, revision: str | None, timeout_s: float
) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that `revision` is, and its files by name.

    Raises: ValueError for what is no listing; what huggingface_hub raises for a status that is no success.
    """
    validate_repo_id(repository)
    address = f"{endpoint}/api/models/{repository}"
    if revision is not None:
        address += f"/revision/{quote(revision, safe='')}"
    # Compressed, a few megabytes would become gigabytes.
    headers = build_hf_headers(library_name="localoss") | {"Accept-Encoding": "identity"}
    with get_session().stream(
        "GET", address, params={"blobs": True}, headers=headers, timeout=timeout_s
    ) as response:
        content = _read(response)
    # The body that huggingface_hub looks at for an error's words is the part that was read.
    plain = [(name, value) for name, value in response.headers.items() if name != "content-encoding"]
    hf_raise_for_status(
        type(response)(response.status_code, headers=plain, content=content, request=response.request)
    )
    if len(content) > _MOST_BYTES:
        raise ValueError(f"longer than {_MOST_BYTES:,} bytes")
    try:
        return _parsed(json.loads(content))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read(response: Any) -> bytes:
    """The body as it comes, up to a byte more than it may have. Raises: ValueError if that takes too long."""
    content, ends_s = bytearray(), time.monotonic() + _MOST_S
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > _MOST_BYTES:
            break
        if time.monotonic() > ends_s:
            raise ValueError(f"not whole after {_MOST_S:.0f} s")
    return bytes(content[: _MOST_BYTES + 1])


def _parsed(listing: Any) -> tuple[str, dict[str, RemoteFile]]:
    if not isinstance(listing, dict) or not isinstance(listing.get("siblings") or [], list):
        raise ValueError("no object with siblings")
    commit = listing.get("sha")
    if not (isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit)):
        raise ValueError("no commit")
    files = [_remote_file(entry) for entry in listing.get("siblings") or []]
    return commit, {file.name: file for file in files}


def _remote_file(entry: Any) -> RemoteFile:
    if not isinstance(entry, dict) or not isinstance(entry.get("rfilename"), str):
        raise ValueError("a file without a name")
    size, lfs, blob = entry.get("size"), entry.get("lfs"), entry.get("blobId")
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 53):
        raise ValueError(f"a size of {str(size)[:40]!r}")
    if lfs is not None and not isinstance(lfs, dict):
        raise ValueError("lfs is no object")
    sha256 = _checksum(lfs.get("sha256"), 64) if lfs else None
    return RemoteFile(
        entry["rfilename"],
        -1 if size is None else size,
        sha256,
        None if lfs else _checksum(blob, 40),
    )


def _checksum(value: Any, digits: int) -> str | None:
    """Raises: ValueError for what is none, though it is there."""
    if value is None:
        return None
    if not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value)):
        raise ValueError("a checksum that is none")
    return value
