"""What a browser sends and gets of the chat page, without the browser."""

import json

import httpx2

PATIENCE_S = 300


class PageClient:
    """One tab: its requests are the page's, with its origin."""

    def __init__(self, server, **headers):
        origin = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        self.http = httpx2.Client(base_url=server.url, timeout=PATIENCE_S, headers=origin | headers)

    def get(self, path):
        return self.http.get(f"/localoss/{path}")

    def post(self, path, body):
        return self.http.post(f"/localoss/{path}", json=body)

    def sessions(self):
        return self.get("sessions").json()["sessions"]

    def view(self, name):
        return self.get(f"sessions/{name}").json()

    def say(self, **turn):
        """A turn to its end: its events, or the refusal."""
        return events_of(self.post("turns", turn))


def events_of(answer):
    """The events of a stream; a refusal's error alone."""
    if answer.status_code != 200:
        return [answer.json()["error"] | {"status": answer.status_code}]
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def said(view):
    """Questions and answers of a view, as they stand."""
    return [
        (one["question"]["text"], "".join(p["text"] for p in one["answer"]["parts"] if p["kind"] == "answer"))
        for one in view["exchanges"]
    ]
