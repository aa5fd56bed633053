"""Clients of a server that ask, leave, send too much and send nonsense, all at once."""

import datetime
import json
import random
import threading
import time
from collections import Counter, defaultdict

import httpx2
import jsonschema

CHAT = "/v1/chat/completions"
MARK = {
    "type": "object",
    "properties": {"mark": {"type": "integer", "minimum": 1, "maximum": 60}, "ok": {"type": "boolean"}},
    "required": ["mark", "ok"],
    "additionalProperties": False,
}

QUESTIONS = [f"{word} " * count for word, count in (("one", 3), ("two", 90), ("three", 200), ("four", 40))]
_NONSENSE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"messages": [{}]}',
    b"{}" * 9,
]

ACTS = {"whole", "stream", "leave_a_stream", "leave", "nonsense", "mutant", "oversized", "look"}
ACTS |= {"structured", "call"}


class Unruly:
    """Clients on `url` for `seconds`; `outcomes` counts what they met, `faults` must stay empty.

    each: they stop earlier, once each of the ACTS has come about so many times. waits: how long each
    question took, by path and question.
    """

    def __init__(self, url, model, seconds, clients=8, each=None):
        self._url, self._model, self._clients, self._each = url, model, clients, each
        self._end = time.monotonic() + seconds
        self.outcomes, self.faults = Counter(), []
        self.waits = defaultdict(list)
        self._day = datetime.date.today()
        self._expected = {}  # what each question is answered, by path

    def run(self, between=lambda: None):
        """Let them loose; `between` is called every half second."""
        with httpx2.Client(timeout=600) as client:
            for path in self._paths():
                for index in range(len(QUESTIONS)):
                    answer = client.post(self._url + path, json=self._body(path, index))
                    self._expected[path, index] = self._said(path, answer.json())
        threads = [threading.Thread(target=self._ask_on, args=[seed]) for seed in range(self._clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            between()
            time.sleep(0.5)

    def _paths(self):
        return ("/v1/chat/completions", "/v1/responses", "/v1/completions")

    def _body(self, path, index, **more):
        body = {"model": self._model, "temperature": 0} | more
        if path.endswith("chat/completions"):
            return body | {"messages": [{"role": "user", "content": QUESTIONS[index]}], "max_tokens": 12}
        if path.endswith("responses"):
            return body | {"input": QUESTIONS[index], "max_output_tokens": 12}
        return body | {"prompt": QUESTIONS[index], "max_tokens": 12, "echo": True}

    def _said(self, path, answer):
        if path.endswith("chat/completions"):
            message = answer["choices"][0]["message"]
            return [message["content"], message.get("reasoning_content")]
        if path.endswith("responses"):
            return [part["text"] for item in answer["output"] for part in item["content"]]
        return [answer["choices"][0]["text"]]

    def _ask_on(self, seed):
        chance = random.Random(seed)
        acts = [self._whole, self._whole, self._stream, self._leave_a_stream, self._leave]
        acts += [self._nonsense, self._mutant, self._oversized, self._look, self._structured, self._call]
        with httpx2.Client(timeout=600) as client:
            while time.monotonic() < self._end and not self._is_enough():
                act = chance.choice(acts)
                path, index = chance.choice(self._paths()), chance.randrange(len(QUESTIONS))
                try:
                    self._note(act.__name__, act(client, chance, path, index))
                except Exception as error:
                    self.faults.append(f"{act.__name__}: {type(error).__name__}: {error}"[:300])

    def _is_enough(self):
        counts = Counter()
        for (act, _), count in list(self.outcomes.items()):
            counts[act] += count
        return self._each is not None and all(counts[act] >= self._each for act in ACTS)

    def _note(self, act, answer):
        status = answer if isinstance(answer, int) else answer.status_code
        self.outcomes[act.lstrip("_"), status] += 1
        if status >= 500:
            self.faults.append(f"{act}: {status}")

    def _whole(self, client, chance, path, index):
        began = time.monotonic()
        answer = client.post(self._url + path, json=self._body(path, index))
        if answer.status_code == 200:
            self.waits[path, index].append(time.monotonic() - began)
            self._compare(path, index, self._said(path, answer.json()))
        return answer

    def _structured(self, client, chance, path, index):
        """An answer that is held to a schema, at a high temperature."""
        wanted = {"type": "json_schema", "json_schema": {"name": "mark", "schema": MARK}}
        body = self._body(CHAT, index, temperature=1.5, response_format=wanted, think_budget=4)
        answer = client.post(self._url + CHAT, json=body | {"max_tokens": 100})
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop":
            jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), MARK)
        return answer

    def _call(self, client, chance, path, index):
        """A call that is asked for, at a high temperature."""
        tool = {"type": "function", "function": {"name": "mark", "parameters": MARK}}
        body = self._body(CHAT, index, temperature=1.5, tools=[tool], tool_choice="required", think_budget=4)
        answer = client.post(self._url + CHAT, json=body | {"max_tokens": 100})
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "tool_calls":
            (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), MARK)
        return answer

    def _stream(self, client, chance, path, index):
        thought = said = ""
        with client.stream("POST", self._url + path, json=self._body(path, index, stream=True)) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event or not event["error"], event
                    if event.get("type") in ("response.completed", "response.incomplete"):
                        self._compare(path, index, self._said(path, event["response"]))
                    for choice in event.get("choices", []):
                        delta = choice.get("delta", {})
                        thought += delta.get("reasoning_content") or ""
                        said += delta.get("content") or choice.get("text") or ""
        if answer.status_code == 200 and path.endswith("chat/completions"):
            self._compare(path, index, [said, thought or None])
        elif answer.status_code == 200 and path.endswith("/completions"):
            self._compare(path, index, [said])
        return answer

    def _leave_a_stream(self, client, chance, path, index):
        body = self._body(path, index, stream=True, temperature=1.5) | {"max_tokens": 200}
        if path.endswith("responses"):
            body["max_output_tokens"] = body.pop("max_tokens")
        with client.stream("POST", self._url + path, json=body) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number > chance.randrange(30):
                    break
        return answer

    def _leave(self, client, chance, path, index):
        try:
            timeout = chance.uniform(0.001, 0.3)
            return client.post(self._url + path, json=self._body(path, index), timeout=timeout)
        except httpx2.TimeoutException:
            return 0

    def _nonsense(self, client, chance, path, index):
        headers = {"Content-Type": "application/json"}
        answer = client.post(self._url + path, content=chance.choice(_NONSENSE), headers=headers)
        return self._refused(answer)

    def _mutant(self, client, chance, path, index):
        """A body with one value replaced by another kind of value."""
        body = self._body(path, index, max_tokens=2)
        values = [None, -1, 1e308, "", [], {}, [[]], True, "\ud800", {"a": {"b": []}}, 2**70]
        body[chance.choice([*body, "tools", "stop", "n", "seed", "response_format", "x"])] = chance.choice(
            values
        )
        content = json.dumps(body)
        headers = {"Content-Type": "application/json"}
        answer = client.post(self._url + path, content=content, headers=headers)
        return answer if answer.status_code == 200 else self._refused(answer)

    def _oversized(self, client, chance, path, index):
        if chance.random() < 0.3:
            headers = {"Content-Type": "application/json"}
            answer = client.post(self._url + path, content=b" " * 17_000_000, headers=headers)
            assert answer.status_code in (413, 429)
            return answer
        name = {"responses": "input", "completions": "prompt"}.get(path.removeprefix("/v1/"))
        body = self._body(path, index)
        body |= {name: "on " * 5000} if name else {"messages": [{"role": "user", "content": "on " * 5000}]}
        answer = self._refused(client.post(self._url + path, json=body))
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        return answer

    def _look(self, client, chance, path, index):
        where = chance.choice(
            ["/health", "/metrics", "/v1/models", "/openapi.json", "/v1/responses/resp_x", "/x"]
        )
        return client.get(self._url.removesuffix("/v1") + where)

    def _refused(self, answer):
        assert 400 <= answer.status_code < 500, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return answer

    def _compare(self, path, index, said):
        is_same_day = datetime.date.today() == self._day  # the day is in every prompt
        if is_same_day and said != self._expected[path, index]:
            self.faults.append(f"{path} {index}: {said!r} instead of {self._expected[path, index]!r}"[:400])
