"""Requests as real clients send them, recorded with texts and names replaced: each is met."""

import json
from pathlib import Path

import pytest
from support.live_server import live
from support.obedient import ObedientEngine

_LINES = (Path(__file__).parent / "golden" / "client_requests.jsonl").read_text(encoding="utf-8").splitlines()
REQUESTS = [json.loads(line) for line in _LINES]
# What no text model on one machine has; the answer says what is served.
NOT_HERE = ("/v1/embeddings", "/v1/moderations", "/v1/audio/speech", "/v1/conversations", "/api/embed")
NOT_HERE += ("/v1/responses/compact",)
# Wrong by OpenAI's own rules, or what the recording has left of them: an image in a new message, words and
# ids that were replaced, no input at all.
REFUSED = ("reads text only", "tool_choice 'text'", "'id_2' not found", "conversation isn't", "prompt isn't")
REFUSED += ("input: Field required", "input.str", "suffix isn't", "holds nothing that", "at least 1 item")


@pytest.mark.parametrize("part", range(6))
def test_recorded_requests_are_met(part):
    with live(ObedientEngine(context_tokens=131_072), name="demo") as server:
        for request in REQUESTS[part::6]:
            answer = server.post(request["path"], request["body"])
            if request["path"].startswith(NOT_HERE):
                assert "served are" in str(answer.json()["error"])
            elif answer.status_code == 400:
                assert any(reason in answer.text for reason in REFUSED), (request, answer.text)
            else:
                assert answer.status_code == 200, (request, answer.text)
                assert '"error":{' not in answer.text
