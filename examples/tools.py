"""Let the model call a function of this program; and run Python and search documents on this machine."""

import sys
from pathlib import Path

import localoss
from localoss.tools.approval import Approvals
from localoss.tools.choice import ToolOptions, open_tools

DAY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": DAY, "strict": True}}
chat = localoss.Chat(sys.argv[1] if len(sys.argv) > 1 else "demo", tools=[WEATHER])
reply = chat.ask("What is the weather in Paris?", temperature=0, max_tokens=200)
while reply.calls:
    print(f"{reply.calls[0].name}({reply.calls[0].arguments})")
    chat.give_result(reply.calls[0], '{"sky": "clear", "celsius": 21}')
    reply = chat.ask(temperature=0, max_tokens=200)
with open_tools(ToolOptions(("python",), docs=(Path(__file__).parent,)), Approvals(None, None)) as tools:
    other = localoss.Chat(chat.engine, runs=tools)  # which makes these calls by itself
    print(reply.text, other.ask("How many lines has examples/tools.py?", max_tokens=200).text, sep="\n")
