"""Ask a question and print the answer."""

import sys

import localoss

chat = localoss.Chat(sys.argv[1] if len(sys.argv) > 1 else "demo")
print(chat.ask("What is 37 + 48?", temperature=0).text)
print(chat.ask("And 12 + 30?", temperature=0).text)
