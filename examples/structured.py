"""Get an answer as JSON that follows a schema."""

import sys

import localoss

COLOR = {"type": "string", "enum": ["red", "green", "blue"]}
SCHEMA = {
    "type": "object",
    "properties": {"color": COLOR, "warm": {"type": "boolean"}},
    "required": ["color", "warm"],
    "additionalProperties": False,
}

chat = localoss.Chat(sys.argv[1] if len(sys.argv) > 1 else "demo", effort="low")
print(chat.ask("Which color has the sky?", schema=SCHEMA, temperature=0).json())
