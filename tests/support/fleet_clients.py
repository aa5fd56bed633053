"""Eight clients of a fleet, on a host of support/hosts.py: 100 conversations of two turns each, 200 requests.

python fleet_clients.py URL KEY: writes what came to clients.json, and how many are done to clients.progress.
"""

import json
import sys
import threading
import time
from pathlib import Path

import httpx2

CLIENTS, CONVERSATIONS = 8, 100
PAUSE_S = 2.5  # after each request, so that they last as long as three restarts


def main(url: str, key: str) -> None:
    left = list(range(CONVERSATIONS))
    found: list[dict] = []
    lock = threading.Lock()

    def ask(messages: list, number: int) -> dict:
        body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 24}
        is_streamed = number % 3 == 0
        if is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        began = time.monotonic()
        answer = httpx2.post(
            f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=600
        )
        answer.raise_for_status()
        if is_streamed:
            assert answer.text.rstrip().endswith("[DONE]"), answer.text[-200:]
            chunks = [
                json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")
            ]
            assert not any("error" in chunk for chunk in chunks), chunks[-1]
            text = "".join(
                choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
            )
            usage = next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))
        else:
            text, usage = answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {"text": text or "", "cached": cached, "prompt": usage["prompt_tokens"],
                "s": time.monotonic() - began}  # fmt: skip

    def client() -> None:
        while True:
            with lock:
                if not left:
                    return
                number = left.pop()
            messages = [
                {"role": "user", "content": f"What is {number % 90} plus {number // 3}? Be brief. " * 4}
            ]
            for turn in range(2):
                try:
                    result = ask(messages, number) | {"turn": turn}
                except Exception as error:
                    result = {"error": f"{type(error).__name__}: {error}"[:300], "turn": turn}
                with lock:
                    found.append(result)
                    Path("clients.progress").write_text(str(len(found)))
                time.sleep(PAUSE_S)
                messages = [
                    *messages,
                    {"role": "assistant", "content": result.get("text", "")},
                    {"role": "user", "content": "And one more?"},
                ]

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    apis = _other_apis(url.removesuffix("/v1"), {"Authorization": f"Bearer {key}"})
    metrics = httpx2.get(
        f"{url.removesuffix('/v1')}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=60
    ).text
    Path("clients.json").write_text(json.dumps({"found": found, "metrics": metrics, "apis": apis}))


def _other_apis(root: str, headers: dict[str, str]) -> list[int]:
    """The statuses of Anthropic's and Ollama's APIs, and of ten responses that each follow the one before."""
    common: dict = {"headers": headers, "timeout": 300}
    said = [{"role": "user", "content": "What is 2 plus 3?"}]
    answers = [
        httpx2.post(
            f"{root}/v1/messages", json={"model": "demo", "max_tokens": 24, "messages": said}, **common
        ),
        httpx2.post(f"{root}/api/chat", json={"model": "demo", "messages": said, "stream": False}, **common),
    ]
    previous = None
    for number in range(10):
        body = {"model": "demo", "input": f"What is {number} plus 1?", "max_output_tokens": 24}
        body |= {"previous_response_id": previous} if previous else {}
        answers.append(httpx2.post(f"{root}/v1/responses", json=body, **common))
        previous = answers[-1].json().get("id")
    return [answer.status_code for answer in answers]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
