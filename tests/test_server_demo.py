"""OpenAI's own clients against a live server on the demo model; nothing hangs on what exactly it says."""

import asyncio
import json
from typing import Annotated, Literal

import openai
import pydantic
import pytest
from support.demo import put
from support.live_server import live

import localoss

NAME = "demo"
ASK = [{"role": "user", "content": "What is 3 + 4?"}]
PLACE = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
PLACE |= {"additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": PLACE}}
    for name in ("get_weather", "get_time")
]
SHORT = {"temperature": 0, "max_tokens": 300, "extra_body": {"think_budget": 30}}


class Answer(pydantic.BaseModel):
    number: Annotated[int, pydantic.Field(ge=0, le=99)]
    sure: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = put(tmp_path_factory.mktemp("models") / NAME)
    with live(localoss.load(folder, context_tokens=4096, threads=1), name=NAME) as server:
        yield server


def test_whole_streamed_and_at_once(server):
    """At temperature 0 all ways give the same words."""
    client = server.client()
    message = client.chat.completions.create(model=NAME, messages=ASK, **SHORT).choices[0].message
    assert message.content is not None
    chunks = list(client.chat.completions.create(model=NAME, messages=ASK, stream=True, **SHORT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content

    async def ask(url):
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        asked = [client.chat.completions.create(model=NAME, messages=ASK, **SHORT) for _ in range(3)]
        return [done.choices[0].message.content for done in await asyncio.gather(*asked)]

    assert asyncio.run(ask(server.url)) == [message.content] * 3


def test_tools(server):
    client, messages = server.client(), list(ASK)
    for tool in TOOLS:
        choice = {"type": "function", "function": {"name": tool["function"]["name"]}}
        done = client.chat.completions.create(
            model=NAME, messages=messages, tools=TOOLS, tool_choice=choice, **SHORT
        )
        (call,) = done.choices[0].message.tool_calls
        assert call.function.name == tool["function"]["name"]
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
        messages += [
            done.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "blue"}'},
        ]
    done = client.chat.completions.create(
        model=NAME, messages=messages, tools=TOOLS, tool_choice="none", **SHORT
    )
    assert done.choices[0].finish_reason in ("stop", "length") and not done.choices[0].message.tool_calls
    assert done.usage.prompt_tokens_details.cached_tokens > 0


def test_structured(server):
    client = server.client()
    done = client.chat.completions.parse(model=NAME, messages=ASK, response_format=Answer, **SHORT)
    assert isinstance(done.choices[0].message.parsed, Answer)
    options = {"max_output_tokens": 300, "extra_body": {"think_budget": 30}}
    response = client.responses.parse(model=NAME, input="Hi", text_format=Answer, **options)
    assert isinstance(response.output_parsed, Answer)


def test_responses_go_on(server):
    client = server.client()
    options = {"model": NAME, "max_output_tokens": 300, "extra_body": {"think_budget": 30}}
    first = client.responses.create(input="What is 1 + 1?", **options)
    second = client.responses.create(input="And 2 + 2?", previous_response_id=first.id, **options)
    assert second.usage.input_tokens > first.usage.input_tokens + 10
    assert second.usage.input_tokens_details.cached_tokens > 0
    with client.responses.stream(input="And 3?", previous_response_id=second.id, **options) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")


@pytest.mark.soak
@pytest.mark.parametrize("api", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def test_an_agent(server, api):
    """Whatever the demo says: it must call the tool that it is told to, and the tool's word is the last."""
    agents = pytest.importorskip("agents", reason="pip install 'localoss[soak]'")
    agents.set_tracing_disabled(True)

    @agents.function_tool
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Weather of a city."""
        return f"sunny {city in ('Rome', 'Oslo')}"

    @agents.function_tool
    def clock(is_local: bool) -> str:
        """What time it is."""
        return f"noon {is_local in (True, False)}"

    async def run(name):
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        settings = agents.ModelSettings(
            tool_choice=name, temperature=0, max_tokens=300, extra_body={"think_budget": 30}
        )
        agent = agents.Agent(
            name="Guide",
            model=getattr(agents, api)(model=NAME, openai_client=client),
            tools=[weather, clock],
            tool_use_behavior="stop_on_first_tool",
            model_settings=settings,
        )
        return (await agents.Runner.run(agent, "What is it like in Rome?")).final_output

    assert asyncio.run(run("weather")) == "sunny True" and asyncio.run(run("clock")) == "noon True"
