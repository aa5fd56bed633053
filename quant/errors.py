"""Errors of the converter whose message is for the user."""


class QuantError(Exception):
    """A source, target or number format that cannot be used as asked; the message says why and what to do."""

    exit_code = 2
