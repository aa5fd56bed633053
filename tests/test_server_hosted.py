"""code_interpreter and web_search of the responses API, run by the server, as OpenAI's client sees them."""

import contextlib
import json

import openai
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent
from support.calling import browser, final, function, python
from support.live_server import MODEL, live
from support.scripted import ScriptedEngine

from localoss.chat import harmony
from localoss.errors import UsageError
from localoss.server.core.hosted import HostedTools, check_hosted
from localoss.tools.choice import ToolOptions

pytest.importorskip("pydantic_monty")
INTERPRETER = {"type": "code_interpreter", "container": {"type": "auto"}}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Start a server that runs python and searches a document, on scripted answers: it and its engine."""
    monkeypatch.setenv("LOCALOSS_HOME", str(tmp_path / "home"))
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "moon.md").write_text("# Moon\n\nIt is made of basalt.\n")
    with contextlib.ExitStack() as stack:

        def start(*answers, hosted=True, **options):
            engine = ScriptedEngine(list(answers), context_tokens=32_768, **options)
            tools = HostedTools(ToolOptions(("python", "browser"), (papers,))) if hosted else None
            if tools:
                stack.callback(tools.close)
            server = stack.enter_context(live(engine))
            server.service.hosted = tools
            return server, engine

        yield start


def respond(server, tools, **options):
    return server.client().responses.create(model=MODEL, input="Hi", tools=tools, **options)


def prompts(engine):
    return [harmony.encoding().decode(prompt) for prompt in engine.prompts]


def test_code_is_run_here(served):
    server, engine = served(python("x = 37"), python("x + 48"), final("85."))
    answer = respond(server, [INTERPRETER])
    kinds = [item.type for item in answer.output]
    assert kinds == ["reasoning", "code_interpreter_call"] * 2 + ["message"] and answer.output_text == "85."
    call = answer.output[3]
    assert call.code == "x + 48" and call.outputs[0].logs == "85\n" and call.status == "completed"
    assert call.container_id == answer.output[1].container_id
    assert answer.usage.output_tokens > 20 and "ignored" not in str(answer)
    assert "namespace browser" not in prompts(engine)[0]  # only what was asked for
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>85\n<|end|>" in prompts(engine)[-1]


def test_variables_stay_with_the_conversation(served):
    server, _ = served(python("x = 1"), final("ok"), python("x + 1"), final("2"), python("x"), final("none"))
    first = respond(server, [INTERPRETER])
    second = respond(server, [INTERPRETER], previous_response_id=first.id)
    assert second.output[1].outputs[0].logs == "2\n"
    other = respond(server, [INTERPRETER])
    assert "NameError" in other.output[1].outputs[0].logs


def test_a_search_with_citations(served):
    calls = [
        browser("search", '{"query":"basalt"}'),
        browser("open", '{"id":0}'),
        browser("find", '{"pattern":"made"}'),
    ]
    server, _ = served(*calls, final("Of basalt【1†L2】."))
    answer = respond(server, [{"type": "web_search"}])
    actions = [item.action for item in answer.output if item.type == "web_search_call"]
    assert [action.type for action in actions] == ["search", "open_page", "find_in_page"]
    assert (
        actions[0].query == "basalt" and actions[1].url.endswith("/moon.md") and actions[2].pattern == "made"
    )
    (mark,) = answer.output[-1].content[0].annotations
    assert mark.type == "url_citation" and mark.url == actions[1].url and mark.title == "Moon (moon.md)"


def test_a_stream_has_openais_events_in_their_order(served):
    server, _ = served(python("1 + 1"), browser("search", '{"query":"basalt"}'), final("Two【0†L1】."))
    body = {
        "model": MODEL,
        "input": "Hi",
        "stream": True,
        "tools": [INTERPRETER, {"type": "web_search_preview"}],
    }
    answer = server.post("/v1/responses", body)
    events = [json.loads(block.partition("data: ")[2]) for block in answer.text.split("\n\n")[:-1]]
    adapter = pydantic.TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    places = [
        kinds.index(f"response.{kind}")
        for kind in (
            "code_interpreter_call.in_progress", "code_interpreter_call_code.delta",
            "code_interpreter_call_code.done", "code_interpreter_call.interpreting",
            "code_interpreter_call.completed", "web_search_call.in_progress", "web_search_call.searching",
            "web_search_call.completed", "output_text.delta", "completed",
        )
    ]  # fmt: skip
    assert places == sorted(places)


def test_functions_of_the_client_stay_the_clients(served):
    server, _ = served(python("2"), function("get_weather", "{}"), final("Sunny."))
    answer = respond(server, [INTERPRETER, WEATHER])
    assert [item.type for item in answer.output][-2:] == ["reasoning", "function_call"]
    call = answer.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    again = server.client().responses.create(
        model=MODEL, input=[result], previous_response_id=answer.id, tools=[INTERPRETER, WEATHER]
    )
    assert again.output_text == "Sunny."


def test_a_client_that_goes_away_ends_the_call(served):
    server, _ = served(python("while True:\n    pass"), final("never"))
    with server.client().responses.stream(model=MODEL, input="Hi", tools=[INTERPRETER]) as stream:
        for event in stream:
            if event.type == "response.code_interpreter_call.interpreting":
                break
    server.wait_until(lambda: not server.service.scheduler.running)
    hosted = server.service.hosted
    server.wait_until(lambda: not any(thread_works(thread) for thread in hosted._threads._threads))


def thread_works(thread):
    import sys
    import traceback

    frame = sys._current_frames().get(thread.ident)
    return frame is not None and any("carry_out" in line for line in traceback.format_stack(frame))


def test_without_tools_of_its_own_it_says_so(served):
    server, engine = served(final("No."), hosted=False)
    answer = server.post("/v1/responses", {"model": MODEL, "input": "Hi", "tools": [INTERPRETER]})
    assert "tools:code_interpreter" in str(answer.headers) and "python" not in prompts(engine)[0]
    with pytest.raises(openai.BadRequestError, match="which this server can't run"):
        respond(server, [INTERPRETER], tool_choice={"type": "code_interpreter"})


def test_tool_choice(served):
    server, _ = served(final("None."), python("1"), final("One."))
    assert respond(server, [INTERPRETER], tool_choice="none").output_text == "None."
    assert respond(server, [INTERPRETER], tool_choice="required").output_text == "One."


@pytest.mark.parametrize("options", [ToolOptions(("tools.json",)), ToolOptions(folder="x")])
def test_a_server_runs_nothing_that_asks_its_user(options):
    with pytest.raises(UsageError, match="a server runs python, cpython, the browser and MCP servers only"):
        check_hosted(options)
