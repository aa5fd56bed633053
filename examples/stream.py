"""Print an answer while it is written, what the model thinks before it in brackets."""

import sys

import localoss
from localoss.chat.parser import MessageStart, TextDelta

chat = localoss.Chat(sys.argv[1] if len(sys.argv) > 1 else "demo", effort="high")
for event in chat.stream("What is 37 + 48?", temperature=0):
    if isinstance(event, MessageStart):
        print(f"\n[{event.channel}] ", end="")
    elif isinstance(event, TextDelta):
        print(event.text, end="", flush=True)
print(f"\n{chat.last.generated_tokens} tokens")
