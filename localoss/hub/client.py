"""One repository on the Hugging Face hub, at one commit: what it holds, and ranges of its files.

huggingface_hub knows the API, tokens, mirrors (HF_ENDPOINT) and proxies; ranges are requested here, since it
keeps nothing of a transfer that was cut off.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from localoss.hub import retry
from localoss.hub.errors import DownloadError, GoneError, WrongFileError
from localoss.hub.listing import RemoteFile, read_listing
from localoss.hub.retry import CutOffError, ExpiredError, OtherFileError, Patience, StatusError
from quant.errors import QuantError
from quant.format.json_file import MOST_BYTES
from quant.format.safetensors import TensorInfo, parse_header

Result = TypeVar("Result")
HEADER_BYTES = 128 << 10  # asked for at once: gpt-oss-20b's headers have less
CHECK_ENDPOINT = "check HF_ENDPOINT"


@dataclass
class Piece:
    """Bytes start:stop of a file, as far as they have come; grows in the thread that reads it."""

    start: int
    stop: int
    data: bytearray = field(default_factory=bytearray)

    @property
    def missing_bytes(self) -> int:
        return self.stop - self.start - len(self.data)


class Hub:
    """Repository `repository` of `revision`, a branch, tag or commit; `say` is told of every wait.

    Any number of threads may read from it. Raises: DownloadError.
    """

    def __init__(
        self,
        repository: str,
        revision: str | None = None,
        *,
        say: Callable[[str], None] = lambda text: None,
        patience: Patience | None = None,
    ):
        self.repository = repository
        self.endpoint = constants.ENDPOINT
        self.host = urlsplit(self.endpoint).netloc
        self.patience = patience or Patience()
        self.cancelled = Event()  # set: every thread stops at its next byte
        self.received_bytes = 0
        self._say = say
        self._quiet_until = 0.0
        self._has_answered = False
        self._lock = Lock()
        self._locations: dict[str, str] = {}
        if urlsplit(self.endpoint).scheme not in ("http", "https") or not self.host:
            raise DownloadError(f"HF_ENDPOINT is {self.endpoint!r}; give one like https://huggingface.co")
        self.commit, self.files = self._patiently(lambda: self._listing(revision))

    def _listing(self, revision: str | None) -> tuple[str, dict[str, RemoteFile]]:
        with self._as_the_hub_answers():
            return read_listing(self.endpoint, self.repository, revision, self._timeout_s)

    @contextmanager
    def _as_the_hub_answers(self) -> Iterator[None]:
        """What has another shape than the hub's answers is told as that. Raises: DownloadError."""
        try:
            yield
        except retry.FAILURES:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            why = " ".join(str(error).split())[:100]
            raise DownloadError(
                f"{self.host} does not answer as the hub does ({why}); {CHECK_ENDPOINT}"
            ) from None

    @property
    def _timeout_s(self) -> float:
        return max(self.patience.connect_s, self.patience.read_s)

    # Whole files

    def file(self, name: str) -> RemoteFile:
        """The file `name`; size and checksum are asked for where the listing has none.

        Raises: GoneError if the repository has none of that name.
        """
        listed = self.files.get(name)
        if listed is None:
            raise GoneError(f"{self.repository} has no {name}; its upload is incomplete, tell its owner")
        if listed.size < 0 or not (listed.sha256 or listed.git_sha1):
            metadata = self._patiently(lambda: self._metadata(name))
            is_sha256 = re.fullmatch(r"[0-9a-f]{64}", metadata.etag or "")
            size = listed.size if listed.size >= 0 else metadata.size
            if size is None:
                raise DownloadError(f"{self.host} does not tell the size of {name}; {CHECK_ENDPOINT}")
            listed = replace(listed, size=size, sha256=metadata.etag if is_sha256 else None)
            self.files[name] = listed
        return listed

    def small_file(self, name: str) -> bytes:
        """The content of a configuration's file, checked against its checksum. Raises: DownloadError."""
        file = self.file(name)
        if file.size > MOST_BYTES:
            raise WrongFileError(f"{self.repository}: {name} has {file.size:,} bytes, too many to be one")

        def read() -> bytes:
            content = self.read(name, 0, file.size)
            blob = f"blob {len(content)}\0".encode() + content
            git_sha1 = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            sha256 = hashlib.sha256(content).hexdigest()
            if (file.sha256 or sha256) != sha256 or (file.git_sha1 or git_sha1) != git_sha1:
                raise OtherFileError(f"{name} came damaged")
            return content

        return self._patiently(read)

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of safetensors file `name`, by a small request or two. Raises: DownloadError."""
        file = self.file(name)

        def read() -> dict[str, TensorInfo]:
            start = self.read(name, 0, min(HEADER_BYTES, file.size))
            header_bytes = int.from_bytes(start[:8], "little")
            if file.size < 8 or header_bytes > min(MOST_BYTES, file.size - 8):
                raise OtherFileError(f"{name} is not safetensors")
            if len(start) < 8 + header_bytes:
                start += self.read(name, len(start), 8 + header_bytes)
            try:
                return parse_header(Path(name), start[8 : 8 + header_bytes], file.size)
            except QuantError as error:
                raise OtherFileError(error) from None

        return self._patiently(read)

    # Ranges

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start:stop of file `name`. Raises: DownloadError."""
        piece = Piece(start, stop)
        self.fill(name, piece)
        return bytes(piece.data)

    def fill(self, name: str, piece: Piece) -> None:
        """Read what `piece` of file `name` lacks, again and again if need be. Raises: DownloadError."""
        if piece.missing_bytes:
            self._patiently(lambda: self._request(name, piece), lambda: len(piece.data))

    def _request(self, name: str, piece: Piece) -> None:
        """One request for what is missing; what came before it broke off stays in `piece`."""
        location = self._location(name)
        first = piece.start + len(piece.data)
        is_hub = urlsplit(location)[:2] == urlsplit(self.endpoint)[:2]
        # A token is for the hub alone, not for the server that its files lie on.
        headers = build_hf_headers(library_name="localoss", token=None if is_hub else False)
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={first}-{piece.stop - 1}"}
        with get_session().stream(
            "GET", location, headers=headers, timeout=self.patience.timeout
        ) as response:
            if response.status_code in (401, 403, 404, 410):
                self._locations.pop(name, None)  # a signed address that has expired, perhaps
                raise ExpiredError
            if response.status_code not in (200, 206):
                raise StatusError(response.status_code, response.headers)
            self._check_range(name, response, first)
            for chunk in response.iter_raw():  # as it comes: what is buffered would be lost
                if self.cancelled.is_set():
                    raise DownloadError("stopped")
                piece.data += chunk[: piece.missing_bytes]
                with self._lock:
                    self.received_bytes += len(chunk)
                if not piece.missing_bytes:
                    return
        raise CutOffError

    def _check_range(self, name: str, response: Any, first: int) -> None:
        if response.status_code == 200:
            if first:
                raise DownloadError(f"{self.host} ignores ranges, which pull needs; {CHECK_ENDPOINT}")
            told = response.headers.get("content-length")
            size = told if told and re.fullmatch(r"\d{1,18}", told, re.ASCII) else None
        else:
            told = response.headers.get("content-range", "")
            span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", told, re.ASCII)
            if not span or int(span[1]) != first:
                raise CutOffError
            size = span[2]
        if size is not None and int(size) != self.files[name].size:
            self._locations.pop(name, None)
            listed = self.files[name].size
            raise OtherFileError(f"{name} has {int(size):,} bytes where its listing says {listed:,}")

    def _location(self, name: str) -> str:
        """Where the bytes of `name` are: an address that the hub redirects to, good for a while."""
        with self._lock:
            known = self._locations.get(name)
        if known is None:
            known = self._locations[name] = self._metadata(name).location
        return known

    def _metadata(self, name: str) -> Any:
        with self._as_the_hub_answers():
            return get_hf_file_metadata(
                hf_hub_url(self.repository, name, revision=self.commit, endpoint=self.endpoint),
                timeout=self._timeout_s,
                library_name="localoss",
                endpoint=self.endpoint,
            )

    # Trying again

    def _patiently(self, action: Callable[[], Result], progressed: Callable[[], int] = lambda: 0) -> Result:
        """`action()`, tried again after what may pass. Raises: DownloadError, with what to do."""
        count, done = 0, progressed()
        while True:
            try:
                result = action()
                self._has_answered = True
                return result
            except retry.FAILURES as error:
                if progressed() > done:
                    count, done = 0, progressed()
                count += 1
                wait_s = self.patience.wait_s(error, count, not self._has_answered)
                if wait_s is None:
                    page = f"{self.endpoint}/{self.repository}"
                    raise retry.explained(error, self.host, self.repository, page) from None
                what = retry.what_happened(error, self.host)
            self._report(f"{what}; trying again in {wait_s:.0f} s", wait_s)
            if self.cancelled.wait(wait_s):
                raise DownloadError("stopped")

    def _report(self, text: str, wait_s: float) -> None:
        """Say why nothing comes, once for all the connections that fail together."""
        with self._lock:
            now_s = time.monotonic()
            if not wait_s or now_s < self._quiet_until:
                return
            self._quiet_until = now_s + wait_s
        self._say(text)
