"""Eight hostile clients of a server, each with an address and a key of its own.

python attackers.py PORT SECONDS [KIND ...]

Each makes requests of its kind without a pause, and notes what it is answered; at the end the counts are
printed as JSON. Bodies are made once: who attacks from elsewhere takes no time of the server's machine.
"""

import collections
import contextlib
import json
import os
import random
import socket
import sys
import threading
import time

CHAT, RESPONSES, RAW, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
MODEL = "demo"


def chat(**more):
    return {"model": MODEL, "messages": HI, "max_tokens": 4} | more


def many(count, one="{}"):
    return "[" + ",".join([one] * count) + "]"


def with_json(body, name, text):
    """The JSON of `body` with `name` as `text`, which is JSON already."""
    return json.dumps(body | {name: "@"}).replace('"@"', text)


BOMBS = [
    (RAW, with_json({"model": MODEL}, "prompt", many(count, one)))
    for count in (30_000, 90_000)
    for one in ("{}", "[]", '"a",1', "null")
]
BOMBS += [
    (CHAT, with_json(chat(), name, many(60_000, one)))
    for one in ("{}", "1", "[1]")
    for name in ("messages", "tools", "stop", "logit_bias", "modalities", "functions")
]
BOMBS += [
    (RESPONSES, with_json({"model": MODEL}, name, many(60_000, one)))
    for name in ("input", "include", "tools")
    for one in ("{}", "1")
]
BOMBS += [
    (MESSAGES, with_json(chat(), "messages", many(60_000))),
    ("/api/chat", with_json(chat(), "messages", many(60_000))),
]
BOMBS += [(CHAT, '{"a":' * 200_000), (CHAT, "[" * 200_000 + "]" * 200_000), (CHAT, " " * 2_000_000)]
BOMBS += [(CHAT, with_json(chat(), "messages", '[{"role":"user","content":' + many(60_000) + "}]"))]

TOO_LONG = [
    (CHAT, json.dumps(chat(messages=[{"role": "user", "content": text}])))
    for text in ("漢" * 300_000, "a" * 2_000_000, "word " * 300_000, "\\u0000" * 100_000, "😀" * 200_000)
]
TOO_LONG += [
    (CHAT, json.dumps(chat(messages=HI * 40_000))),
    (RAW, json.dumps({"model": MODEL, "prompt": "x y " * 400_000})),
]
TOO_LONG += [
    (RESPONSES, json.dumps({"model": MODEL, "input": "漢" * 300_000})),
    (RAW, json.dumps({"model": MODEL, "prompt": [5] * 500_000})),
    (
        MESSAGES,
        json.dumps(
            {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "漢" * 300_000}]}
        ),
    ),
]


def deep(count, wrap, inner):
    for _ in range(count):
        inner = wrap(inner)
    return inner


def laughing(kind, levels):
    """A schema that is 10 ** levels once it is written out."""
    definitions = {f"a{n}": {kind: [{"$ref": f"#/$defs/a{n + 1}"}] * 10} for n in range(levels)}
    return {"$defs": definitions | {f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


SCHEMAS = [
    {"type": "string", "minLength": 10**9, "maxLength": 10**9},
    {"type": "array", "minItems": 10**9},
    {"type": "object", "required": [f"k{n}" for n in range(20_000)]},
    {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(12_000)}},
    {"enum": [f"v{n}" for n in range(30_000)]},
    {"anyOf": [{"type": "string", "maxLength": n} for n in range(5000)]},
    {"allOf": [{"type": "integer", "minimum": n} for n in range(2000)]},
    {"const": "x" * 400_000},
    *(
        {"type": "string", "pattern": text}
        for text in (
            "^(a+)+$",
            "^(a{1,1000}){1,1000}$",
            "^.*x.{100000}$",
            "(a)\\1",
            "((((",
            "a|" * 100_000,
            "^(.*[a-z].{30}|.*[0-9].{30})$",
            "^((((a{1,100}){1,100}){1,100}){1,100})$",
        )
    ),
    {"type": "number", "multipleOf": 1e-9},
    {"$ref": "#"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/nowhere"},
    laughing("anyOf", 9),
    laughing("allOf", 7),
    laughing("prefixItems", 12),
    {"allOf": [{"anyOf": [{"properties": {f"a{n}_{m}": {}}} for n in range(6)]} for m in range(7)]},
    deep(90, lambda inner: {"type": "object", "additionalProperties": inner}, {}),
    {"description": "x" * 600_000},
    {"type": "object", "x-guidance": {"whitespace_pattern": ".{0,1000000}"}},
    {"enum": ["\ud800"]},
    {"enum": []},
]
SCHEMAS = [
    (
        CHAT,
        json.dumps(
            chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        ),
    )
    for schema in SCHEMAS
]

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
BROKEN = [
    HEAD + rest
    for rest in (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\nx",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 70_000 + b"\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    )
]
BROKEN += [
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%zz%c0%af%2e HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 199
    + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
]
PATHS = [
    "/../../etc/passwd",
    "/localoss/page/../../../etc/passwd",
    "/localoss/page/%2e%2e%2fx",
    "/v1/models/../../x",
    "/metrics",
    "/v1/files/../../../etc/passwd",
    "/v1/files/file-" + "0" * 24,
    "/v1/responses/resp_" + "0" * 32,
    "/openapi.json",
    "/v1/models",
    "/api/tags",
    "/api/ps",
    "/v1/batches",
    "/localoss/sessions",
    "/stats",
    "/v1/responses/" + "x" * 4000,
]


class Attacker:
    """One hostile client. seen: how often each status came, and what went wrong."""

    def __init__(self, port, number, ends):
        self.port, self.number, self.ends = port, number, ends
        self.random, self.seen = random.Random(number), collections.Counter()
        self.key = f"hostile-{number}-0123456789"

    def run(self):
        kind = KINDS[self.number % len(KINDS)]
        while time.monotonic() < self.ends:
            try:
                kind(self)
            except OSError as error:
                self.seen[type(error).__name__] += 1
                time.sleep(0.01)

    def connect(self, timeout_s=60.0):
        own = (f"127.0.1.{self.number + 1}", 0) if sys.platform == "linux" else None
        return socket.create_connection(("127.0.0.1", self.port), timeout_s, own)

    def head(self, path, size, method="POST", key=None, host="localhost"):
        key = self.key if key is None else key
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        ).encode()

    def answered(self, data, most_bytes=1 << 24):
        """Send, and note the status; 'dropped' for a connection that is closed without one."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # refused before all was read: the answer may be there
                connection.sendall(data)
            start = connection.recv(4096)
            self.seen[start[9:12].decode("latin-1") if start.startswith(b"HTTP/") else "dropped"] += 1
            left = most_bytes
            while left > 0 and (chunk := connection.recv(65536)):
                left -= len(chunk)
            return start

    def ask(self, path, body, **more):
        body = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        return self.answered(self.head(path, len(body), **more) + body)

    def throw_bombs(self):
        self.ask(*self.random.choice(BOMBS))

    def write_too_much(self):
        self.ask(*self.random.choice(TOO_LONG))

    def send_schemas(self):
        self.ask(*self.random.choice(SCHEMAS))

    def keep_connections(self):
        """Hundreds that say half of something, thirty that begin bodies of 15 MB, some that never read."""
        opened = []
        try:
            for _ in range(400):
                opened.append(self.connect(5))
                opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            for _ in range(30):
                opened.append(self.connect(5))
                opened[-1].settimeout(0.5)
                opened[-1].sendall(self.head(CHAT, 15_000_000) + b" " * 2_000_000)
            for _ in range(20):
                opened.append(self.connect(5))
                body = json.dumps(chat(stream=True, max_tokens=2000)).encode()
                opened[-1].sendall(self.head(CHAT, len(body)) + body)
        except OSError:
            self.seen["kept out"] += 1
        wait_s = min(self.random.uniform(1, 12), max(self.ends - time.monotonic(), 0))
        time.sleep(wait_s)
        for connection in opened:
            connection.close()
        self.seen["kept"] += len(opened)

    def speak_badly(self):
        data = self.random.choice(BROKEN)
        if self.random.random() < 0.6:
            body = json.dumps(chat()).encode()
            mutated = bytearray(self.head(CHAT, len(body)) + body)
            for _ in range(self.random.choice([1, 2, 4, 8])):
                at = self.random.randrange(len(mutated))
                mutated[at : at + self.random.randrange(2)] = bytes([self.random.randrange(256)])
            data = bytes(mutated)
        with self.connect(5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            start = connection.recv(4096)
            self.seen[start[9:12].decode("latin-1") if start.startswith(b"HTTP/") else "dropped"] += 1

    def want_everything(self):
        """Long answers, many at once, most of which are left in the middle; prompts that just fit."""
        act = self.random.randrange(4)
        if act == 0:
            self.ask(CHAT, json.dumps(chat(n=8, max_tokens=400, ignore_eos=True)))
        elif act == 1:
            self.ask(
                RAW,
                json.dumps({"model": MODEL, "prompt": f"{self.random.random()} " * 300, "max_tokens": 200}),
            )
        else:
            opened = []
            for _ in range(40):
                body = json.dumps(chat(stream=True, max_tokens=3000, ignore_eos=True)).encode()
                opened.append(self.connect())
                opened[-1].sendall(self.head(CHAT, len(body)) + body)
            for connection in opened[:8]:
                self.seen[connection.recv(4096)[9:12].decode("latin-1")] += 1
            for connection in opened:
                connection.close()

    def store_things(self):
        name = "x" * self.random.choice([10, 64, 65, 100_000])
        act = self.random.randrange(5)
        if act == 0:
            body = {
                "model": MODEL,
                "input": "a " * 900,
                "max_output_tokens": 1,
                "metadata": {name: "v" * 600},
            }
        elif act == 1:
            body = {"model": MODEL, "input": "a " * self.random.choice([5, 500]), "max_output_tokens": 1}
        elif act == 2:
            body = {"model": MODEL, "input": [{"type": "item_reference", "id": name}], "max_output_tokens": 1}
        elif act == 3:
            body = {"model": MODEL, "input": "a", "previous_response_id": name, "max_output_tokens": 1}
        else:
            part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + os.urandom(
                20_000
            )
            part += b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
            head = self.head("/v1/files", len(part)).replace(
                b"application/json", b"multipart/form-data; boundary=b"
            )
            self.answered(head + part)
            return
        self.ask(RESPONSES, json.dumps(body))

    def guess(self):
        path, method = self.random.choice(PATHS), self.random.choice(["GET", "GET", "DELETE", "POST"])
        key = self.random.choice([self.key, "", "wrong", "x" * 5000, "\u00ff"])
        host = self.random.choice(["localhost", "localhost", "evil.example", "localhost:evil", "x" * 300])
        self.ask(path, b"{}" if method == "POST" else b"", method=method, key=key, host=host)


KINDS = [
    Attacker.throw_bombs,
    Attacker.write_too_much,
    Attacker.send_schemas,
    Attacker.keep_connections,
    Attacker.speak_badly,
    Attacker.want_everything,
    Attacker.store_things,
    Attacker.guess,
]


def main(port, seconds, kinds):
    print("ready", flush=True)  # all bodies are made
    sys.stdin.readline()
    ends = time.monotonic() + seconds
    wanted = [number for number, kind in enumerate(KINDS) if not kinds or kind.__name__ in kinds]
    attackers = [Attacker(port, number, ends) for number in wanted]
    threads = [threading.Thread(target=attacker.run, daemon=True) for attacker in attackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 90)
    print(json.dumps({KINDS[attacker.number].__name__: dict(attacker.seen) for attacker in attackers}))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
