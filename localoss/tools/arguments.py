"""What a model wrote as the arguments of a call."""

import json
from typing import Any

from localoss.errors import LocalossError


def arguments_of(text: str) -> dict[str, Any]:
    """The JSON object that `text` is; nothing at all stands for an empty one.

    Raises: LocalossError, for the model to read.
    """
    try:
        arguments = json.loads(text, strict=False) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise LocalossError('the arguments are no JSON object, such as {"name": "value"}')
    return arguments
