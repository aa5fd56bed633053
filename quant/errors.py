"""Errors whose message is for the user; the runner's are in localoss/errors.py, under the same root."""

MOST_CHARACTERS = 600


class LocalossError(Exception):
    """Something a user can mend. The command line prints the message alone and exits with `exit_code`."""

    exit_code = 1


class QuantError(LocalossError):
    """A source, target or number format that cannot be used as asked; the message says why and what to do."""

    exit_code = 2

    def __str__(self) -> str:
        """One line that a terminal can show, whatever names and values a damaged file brought into it."""
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in super().__str__())
        if len(text) <= MOST_CHARACTERS:
            return text
        return f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 2 :]}"


class BusyError(QuantError):
    """Another process writes the same folder."""
