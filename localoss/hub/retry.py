"""What to make of a request that failed: wait and try again, or one line for the user with the remedy."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# httpx's, or httpx2's: whichever the hub uses.
from huggingface_hub.errors import HTTPError as TransferError  # type: ignore[attr-defined]

from localoss.hub.errors import DownloadError, GoneError, WrongFileError

TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)
TIMES = 3  # to ask for a file that is gone or comes damaged
LOGIN = "`hf auth login`, or set HF_TOKEN"
GOES_ON = "the same command goes on where it stopped"


class CutOffError(Exception):
    """The server ended a response too early, or sent what wasn't asked for."""


class ExpiredError(Exception):
    """The address that the hub gave for a file is no longer good."""


class OtherFileError(ExpiredError):
    """What lies at the address is not what the listing says: another size, or other content."""


class StatusError(Exception):
    """An HTTP status that is no success, where huggingface_hub did not ask."""

    def __init__(self, status: int, headers: Any):
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers


FAILURES = (TransferError, OfflineModeIsEnabled, HFValidationError, CutOffError, ExpiredError, StatusError)


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds, and how many failures in a row to take before giving up."""

    connect_s: float = 15.0
    read_s: float = 30.0  # without a single byte: a stall
    first_wait_s: float = 1.0  # doubles with each failure
    longest_wait_s: float = 60.0
    failures: int = 8
    first_failures: int = 3  # before anything has come: more likely there is no network at all

    @property
    def timeout(self) -> tuple[float, float, float, float]:
        """connect, read, write and pool, as httpx takes them."""
        return self.connect_s, self.read_s, self.read_s, self.read_s

    def wait_s(self, error: Exception, failures: int, is_first: bool) -> float | None:
        """How long to wait after `error`, the last of `failures` in a row; None if no wait will help.

        `is_first`: nothing has come from there yet.
        """
        if isinstance(error, ExpiredError):
            return 0.0 if failures < TIMES else None
        wait_s: float = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)
        status, headers = _status_of(error)
        most = self.first_failures if is_first else self.failures
        if failures > most or not _is_transient(error, status):
            return None
        asked: str = headers.get("retry-after", "")
        if not (asked.isascii() and asked.isdecimal()):
            return wait_s
        longest: float = 5 * self.longest_wait_s
        return max(wait_s, min(float(asked), longest))


def _is_transient(error: Exception, status: int | None) -> bool:
    if status is not None:
        return status in TRANSIENT
    if type(error).__name__ == "UnsupportedProtocol":
        return False
    return isinstance(error, TransferError | CutOffError)


def _status_of(error: Exception) -> tuple[int | None, Any]:
    """HTTP status and headers of `error`; None and nothing if no answer came."""
    if isinstance(error, StatusError):
        return error.status, error.headers
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code, error.response.headers
    return None, {}


def what_happened(error: Exception, host: str) -> str:
    """`error` in a few words, for a line that says what is being waited for."""
    status, _ = _status_of(error)
    if status == 429:
        return f"{host} asks to wait (429)"
    if status is not None:
        return f"{host} fails ({status})"
    if isinstance(error, CutOffError) or type(error).__name__ in ("RemoteProtocolError", "ReadError"):
        return f"{host} closed the connection too early"
    if "Timeout" in type(error).__name__:
        return f"nothing comes from {host}"
    return f"{host} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"


def explained(error: Exception, host: str, repository: str, page: str) -> DownloadError:
    """The one line for a user whose request about `repository`, shown at `page`, failed for good."""
    status, headers = _status_of(error)
    if isinstance(error, OtherFileError):
        return WrongFileError(f"{repository}: {error}; try again later, or check HF_ENDPOINT")
    refused = _refusal(error, host, repository, page, headers)
    if refused:
        return refused
    if isinstance(error, ExpiredError) or status == 404:
        return GoneError(f"{repository}: a file that its listing names is gone; try again, or tell its owner")
    if status == 429:
        return DownloadError(f"{host} asks to wait (429): try later, {GOES_ON}; with a token less: {LOGIN}")
    if status in (401, 403):
        return DownloadError(f"{host} refuses access to {repository} ({status}): {LOGIN}")
    if status is not None:
        return DownloadError(f"{host} fails ({status}): try again later; {GOES_ON}")
    return DownloadError(f"{what_happened(error, host)}: check the network; {GOES_ON}")


def _refusal(error: Exception, host: str, repository: str, page: str, headers: Any) -> DownloadError | None:
    """What the hub itself says about a repository that it does not give."""
    if isinstance(error, GatedRepoError):
        return DownloadError(f"{repository} is gated: accept its terms at {page}, then {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return GoneError(f"{repository} has no such revision; {page} lists them, or leave out --revision")
    if "Invalid credentials" in headers.get("x-error-message", ""):
        return DownloadError(f"{host} refuses your token: {LOGIN} anew")
    if isinstance(error, RepositoryNotFoundError):
        return GoneError(f"{host} has no model {repository}, or keeps it private: check its name, or {LOGIN}")
    if isinstance(error, HFValidationError):
        return GoneError(f"{repository!r} is no repository's name; expected owner/name")
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError("HF_HUB_OFFLINE is set; unset it to pull")
    return None
