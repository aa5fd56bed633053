"""Let the model call a function of this program."""

import sys

import localoss

DAY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": DAY, "strict": True}}

chat = localoss.Chat(sys.argv[1] if len(sys.argv) > 1 else "demo", tools=[WEATHER])
reply = chat.ask("What is the weather in Paris?", temperature=0, max_tokens=200)
while reply.calls:
    for call in reply.calls:
        print(f"{call.name}({call.arguments})")
        chat.give_result(call, '{"sky": "clear", "celsius": 21}')
    reply = chat.ask(temperature=0, max_tokens=200)
print(reply.text)
