"""What can go wrong with a download: one line each, with the remedy."""

from localoss.errors import LocalossError


class DownloadError(LocalossError):
    """The hub or the network did not give what was asked for."""


class GoneError(DownloadError):
    """The hub has no such repository, revision or file: asking again won't help."""

    exit_code = 2


class WrongFileError(DownloadError):
    """A file is not what the hub's listing says."""
