"""Clients of a fleet whose replicas are killed meanwhile, on a host of support/hosts.py.

python fleet_streams.py URL KEY: asks until there is a file named `stop`; writes how many are done to
streams.progress, and in the end what came of each, an answer or a stream in turn, to streams.json: "whole",
"said" for a stream that ended with a line about its machine, or an error.
"""

import json
import sys
import threading
from pathlib import Path

import httpx2

CLIENTS = 6
TOKENS = 600  # of a stream, which is to last until somebody is killed
GONE = "the machine that wrote this answer, is gone"


def main(url: str, key: str) -> None:
    found: list[dict] = []
    lock = threading.Lock()
    headers = {"Authorization": f"Bearer {key}"}

    def stream(number: int) -> str:
        body = {"model": "demo", "prompt": f"{number}: ", "max_tokens": TOKENS, "stream": True}
        body |= {"logit_bias": {"199999": -100, "200002": -100, "200012": -100}}  # nothing that would end it
        answer = httpx2.post(f"{url}/completions", json=body, headers=headers, timeout=600)
        answer.raise_for_status()
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        errors = [json.loads(event)["error"]["message"] for event in events if event.startswith('{"error"')]
        if not answer.text.endswith("data: [DONE]\n\n") or (errors and GONE not in errors[0]):
            return f"error: {errors} {answer.text[-200:]}"
        return "said" if errors else "whole"

    def whole(number: int) -> str:
        said = [{"role": "user", "content": f"What is {number % 90} plus {number // 3}?"}]
        body = {"model": "demo", "messages": said, "max_tokens": 200}
        answer = httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=600)
        answer.raise_for_status()
        assert answer.json()["usage"]["completion_tokens"]
        return "whole"

    def client(mine: int) -> None:
        number = mine
        while not Path("stop").exists():
            ask = stream if number % 2 else whole
            try:
                came = ask(number)
            except Exception as error:
                came = f"error: {type(error).__name__}: {error}"[:300]
            with lock:
                found.append({"kind": ask.__name__, "came": came})
                Path("streams.progress").write_text(str(len(found)))
            number += CLIENTS + 1

    threads = [threading.Thread(target=client, args=(mine,)) for mine in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path("streams.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
