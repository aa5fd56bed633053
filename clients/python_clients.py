"""Python's clients, each with a plain answer, a stream and a tool: `python python_clients.py NAME URL`.

Each function takes the server's address and gives what it was answered, by what it tried: a text, a stream's
pieces, or None where the client has no way to do it. The player answers as it is told to; see player.py.
"""

import asyncio
import json
import sys

SAY = "please @shout banana split, peeled@"
SHOUTED = "BANANA SPLIT, PEELED"
CALL = 'please @call weather {"city": "Rome"}@'
MODEL = "demo"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = f"sunny {6 * 7}"
HOSTED = {
    "code_interpreter": {"type": "code_interpreter", "container": {"type": "auto"}},
    "web_search": {"type": "web_search"},
    "mcp": {"type": "mcp", "server_label": "place", "require_approval": "never"},
}
ORDERS = {
    "code_interpreter": 'please @run python print("localoss-" + str(40 + 2))@',
    "web_search": 'please @run browser.search {"query": "basalt"}@',
    "mcp": 'please @call place__echo {"text": "localoss-44"}@',
}


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name.
    """
    return f"{WEATHER} in {city}"


def openai_chat(url):
    from openai import OpenAI

    client = OpenAI(base_url=url + "/v1", api_key="none")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]

    def ask(messages, **options):
        return client.chat.completions.create(model=MODEL, messages=messages, **options)

    user = [{"role": "user", "content": SAY}]
    yield "plain", ask(user).choices[0].message.content
    yield "stream", [part.choices[0].delta.content or "" for part in ask(user, stream=True)]
    messages = [{"role": "user", "content": CALL}]
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    yield "tool", ask(messages, tools=tools).choices[0].message.content


def openai_responses(url):
    from openai import OpenAI

    client = OpenAI(base_url=url + "/v1", api_key="none")
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
    yield "plain", client.responses.create(model=MODEL, input=SAY).output_text
    with client.responses.stream(model=MODEL, input=SAY) as stream:
        yield "stream", [one.delta for one in stream if one.type == "response.output_text.delta"]
    first = client.responses.create(model=MODEL, input=CALL, tools=tools)
    call = first.output[-1]
    result = weather(**json.loads(call.arguments))
    items = [{"type": "function_call_output", "call_id": call.call_id, "output": result}]
    then = client.responses.create(model=MODEL, input=items, previous_response_id=first.id, tools=tools)
    yield "tool", then.output_text


def anthropic(url):
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key="none")
    options = {"model": MODEL, "max_tokens": 999}
    user = [{"role": "user", "content": SAY}]
    yield "plain", client.messages.create(messages=user, **options).content[-1].text
    with client.messages.stream(messages=user, **options) as stream:
        yield "stream", list(stream.text_stream)
    options["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
    messages = [{"role": "user", "content": CALL}]
    with client.messages.stream(messages=messages, **options) as stream:
        message = stream.get_final_message()
    call = next(block for block in message.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)}
    messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    yield "tool", client.messages.create(messages=messages, **options).content[-1].text


def ollama(url):
    from ollama import Client

    client = Client(host=url)
    user = [{"role": "user", "content": SAY}]
    yield "plain", client.chat(model=MODEL, messages=user).message.content
    parts = client.chat(model=MODEL, messages=user, stream=True)
    yield "stream", [part.message.content or "" for part in parts]
    messages = [{"role": "user", "content": CALL}]
    message = client.chat(model=MODEL, messages=messages, tools=[weather]).message
    (call,) = message.tool_calls
    result = weather(**call.function.arguments)
    messages += [message, {"role": "tool", "tool_name": "weather", "content": result}]
    yield "tool", client.chat(model=MODEL, messages=messages, tools=[weather]).message.content


def _langchain(model):
    from langchain_core.messages import HumanMessage, ToolMessage

    def text(message):
        return message.text if isinstance(message.text, str) else message.text()

    yield "plain", text(model.invoke(SAY))
    yield "stream", [text(part) for part in model.stream(SAY)]
    bound = model.bind_tools([weather])
    messages = [HumanMessage(CALL)]
    messages.append(bound.invoke(messages))
    (call,) = messages[-1].tool_calls
    messages.append(ToolMessage(weather(**call["args"]), tool_call_id=call["id"]))
    yield "tool", text(bound.invoke(messages))


def langchain_openai(url):
    from langchain_openai import ChatOpenAI

    yield from _langchain(ChatOpenAI(base_url=url + "/v1", api_key="none", model=MODEL))


def langchain_anthropic(url):
    from langchain_anthropic import ChatAnthropic

    yield from _langchain(ChatAnthropic(base_url=url, api_key="none", model=MODEL, max_tokens=999))


def langchain_ollama(url):
    from langchain_ollama import ChatOllama

    yield from _langchain(ChatOllama(base_url=url, model=MODEL))


def _litellm(**options):
    import litellm

    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]

    def ask(messages, **more):
        return litellm.completion(messages=messages, api_key="none", **options, **more)

    user = [{"role": "user", "content": SAY}]
    yield "plain", ask(user).choices[0].message.content
    yield "stream", [part.choices[0].delta.content or "" for part in ask(user, stream=True)]
    messages = [{"role": "user", "content": CALL}]
    message = ask(messages, tools=tools).choices[0].message
    (call,) = message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    told = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": result}
    yield "tool", ask([*messages, message.model_dump(), told], tools=tools).choices[0].message.content


def litellm_openai(url):
    yield from _litellm(model=f"openai/{MODEL}", api_base=url + "/v1")


def litellm_anthropic(url):
    yield from _litellm(model=f"anthropic/{MODEL}", api_base=url, max_tokens=999)


def litellm_ollama_chat(url):
    yield from _litellm(model=f"ollama_chat/{MODEL}", api_base=url)


def _agents(url, kind):
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
    model = getattr(agents, kind)(model=MODEL, openai_client=client)
    agent = agents.Agent(name="Guide", model=model, tools=[agents.function_tool(weather)])

    async def tried():
        run = agents.Runner.run_streamed(agent, SAY)
        said = []
        async for event in run.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                said.append(event.data.delta)
        yield "stream", said
        yield "plain", (await agents.Runner.run(agent, SAY)).final_output
        yield "tool", (await agents.Runner.run(agent, CALL)).final_output

    yield from _gathered(tried())


def _gathered(answers):
    """What an asynchronous generator gives: the connections of a client belong to one event loop."""

    async def gather():
        return [answer async for answer in answers]

    return asyncio.run(gather())


def openai_agents_chat(url):
    yield from _agents(url, "OpenAIChatCompletionsModel")


def openai_agents_responses(url):
    yield from _agents(url, "OpenAIResponsesModel")


def pydantic_ai(url):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url + "/v1", api_key="none"))
    agent = Agent(model, tools=[weather])

    async def tried():
        async with agent.run_stream(SAY) as run:
            yield "stream", [text async for text in run.stream_text(delta=True, debounce_by=None)]
        yield "plain", (await agent.run(SAY)).output
        yield "tool", (await agent.run(CALL)).output

    yield from _gathered(tried())


def instructor(url):
    import instructor as library
    from openai import OpenAI
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    raw = OpenAI(base_url=url + "/v1", api_key="none")
    for what, mode in (("plain", library.Mode.JSON_SCHEMA), ("tool", library.Mode.TOOLS)):
        client = library.from_openai(raw, mode=mode)
        order = (
            f'@say {{"name": "{SHOUTED}"}}@' if what == "plain" else f'@call City {{"name": "{WEATHER}"}}@'
        )
        messages = [{"role": "user", "content": order}]
        yield what, client.chat.completions.create(model=MODEL, response_model=City, messages=messages).name
    messages = [{"role": "user", "content": f'@call PartialCity {{"name": "{SHOUTED}"}}@'}]
    parts = client.chat.completions.create_partial(model=MODEL, response_model=City, messages=messages)
    yield "stream", [part.name or "" for part in parts]


def smolagents(url):
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    model = OpenAIServerModel(model_id=MODEL, api_base=url + "/v1", api_key="none")
    user = [{"role": "user", "content": [{"type": "text", "text": SAY}]}]
    yield "plain", model.generate(user).content
    yield "stream", [part.content or "" for part in model.generate_stream(user)]
    agent = ToolCallingAgent(tools=[tool(weather)], model=model, max_steps=3, verbosity_level=0)
    yield "tool", str(agent.run(CALL))


def inspect_ai(url):
    import inspect_ai.model as library
    from inspect_ai.tool import ToolInfo, ToolParams

    model = library.get_model(f"openai/{MODEL}", base_url=url + "/v1", api_key="none")
    parameters = ToolParams(properties={"city": {"type": "string"}}, required=["city"])
    tools = [ToolInfo(name="weather", description="Weather.", parameters=parameters)]
    asked = library.ChatMessageUser(content=CALL)

    async def tried():
        yield "plain", (await model.generate(SAY)).completion
        said = []

        async def heard(event):
            if event.type == "text":
                said.append(event.text)

        await model.generate(SAY, on_stream=heard)
        yield "stream", said
        first = (await model.generate([asked], tools=tools)).message
        (call,) = first.tool_calls
        result = library.ChatMessageTool(content=weather(**call.arguments), tool_call_id=call.id)
        yield "tool", (await model.generate([asked, first, result], tools=tools)).completion

    yield from _gathered(tried())


def openai_hosted(url):
    from openai import OpenAI

    client = OpenAI(base_url=url + "/v1", api_key="none")
    for what, tool in HOSTED.items():
        answer = client.responses.create(model=MODEL, input=ORDERS[what], tools=[tool])
        assert any(item.type.startswith(what) for item in answer.output), answer.output
        yield what, answer.output_text


def openai_agents_hosted(url):
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
    model = agents.OpenAIResponsesModel(model=MODEL, openai_client=client)
    tools = {
        "code_interpreter": agents.CodeInterpreterTool(tool_config=HOSTED["code_interpreter"]),
        "web_search": agents.WebSearchTool(),
        "mcp": agents.HostedMCPTool(tool_config=HOSTED["mcp"]),
    }

    async def tried():
        for what, tool in tools.items():
            agent = agents.Agent(name="Guide", model=model, tools=[tool])
            yield what, (await agents.Runner.run(agent, ORDERS[what])).final_output

    yield from _gathered(tried())


CLIENTS = {name: value for name, value in list(globals().items()) if callable(value) and name[0] != "_"}
CLIENTS.pop("weather")


def main(name, url):
    expected = {"plain": SHOUTED, "stream": SHOUTED, "tool": WEATHER}
    expected |= {"code_interpreter": "localoss-42", "web_search": "localoss-43"}
    expected["mcp"] = 'echo got {"text": "localoss-44"}'
    for what, said in CLIENTS[name](url):
        text = "".join(said or ())
        passes = expected[what] in text
        if what == "stream":  # in one piece it is none
            passes = passes and isinstance(said, list) and sum(map(bool, said)) > 2
        word = "has none" if said is None else "yes" if passes else "no"
        print(json.dumps([what, word, text[:200]]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
