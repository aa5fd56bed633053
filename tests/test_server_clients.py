"""Programs that others wrote: OpenAI's asynchronous client, its Agents SDK, schemathesis.

The last two are in the extra `soak`.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from support.live_server import MODEL, live
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss.chat import harmony

START = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def call(name, arguments):
    thought = f"<|channel|>analysis<|message|>Now {name}.<|end|>{START}"
    return (
        f"{thought}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )


def test_the_asynchronous_client():
    async def converse(url):
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]
        asked = [client.chat.completions.create(model=MODEL, messages=messages) for _ in range(4)]
        said = [done.choices[0].message.content for done in await asyncio.gather(*asked)]
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        said.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
        said.append((await client.responses.create(model=MODEL, input="Hi")).output_text)
        async with client.responses.stream(model=MODEL, input="Hi") as events:
            said.append((await events.get_final_response()).output_text)
        return said

    with live(ScriptedEngine([HELLO])) as server:
        assert asyncio.run(converse(server.url)) == ["Hello!"] * 7


@pytest.mark.soak
@pytest.mark.parametrize("api", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def test_an_agent_with_two_tools(api):
    agents = pytest.importorskip("agents", reason="pip install 'localoss[soak]'")
    agents.set_tracing_disabled(True)
    used = []

    @agents.function_tool
    def look_up(city: str) -> str:
        """Coordinates of a city."""
        used.append(city)
        return "41.9, 12.5"

    @agents.function_tool
    def weather(latitude: float, longitude: float) -> str:
        """Weather at a place."""
        used.append((latitude, longitude))
        return "sunny"

    engine = ScriptedEngine(
        [
            call("look_up", '{"city": "Rome"}'),
            call("weather", '{"latitude": 41.9, "longitude": 12.5}'),
            FINAL + "It is sunny in Rome.<|return|>",
        ]
    )

    async def run(url):
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        model = getattr(agents, api)(model=MODEL, openai_client=client)
        agent = agents.Agent(name="Guide", instructions="Be brief.", model=model, tools=[look_up, weather])
        first = await agents.Runner.run(agent, "What's the weather in Rome?")
        engine.prompts.clear()  # the script begins anew
        streamed = agents.Runner.run_streamed(agent, "And again?")
        async for _ in streamed.stream_events():
            pass
        return first.final_output, streamed.final_output

    with live(engine) as server:
        assert asyncio.run(run(server.url)) == ("It is sunny in Rome.",) * 2
    assert used == ["Rome", (41.9, 12.5)] * 2
    text = harmony.encoding().decode(engine.prompts[-1])
    assert "Now look_up." in text and "Now weather." in text  # thinking stays while calls go on


@pytest.mark.soak
def test_schemathesis(model, tmp_path):
    """Bodies made from the served OpenAPI document, valid and not: nothing but what the document says.

    On random weights: a scripted engine can't do all that bodies ask for.
    """
    pytest.importorskip("schemathesis", reason="pip install 'localoss[soak]'")
    with live(localoss.load(model("harmony"), context_tokens=512, threads=1)) as server:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        command = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json"]
        done = subprocess.run(
            [
                *command,
                "--max-examples",
                "100",
                "--checks",
                checks,
                "--seed",
                "1",
                "--no-color",
                "--request-timeout",
                "300",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr
        metrics = server.get("/metrics").text
    assert 'status="500"' not in metrics and 'path="/v1/chat/completions",status="200"' in metrics
