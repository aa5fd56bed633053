"""A hub that is hostile, or a mirror that is none: one line for each answer, and little memory."""

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.hub_fixtures import QUICK
from support.hub_server import COMMIT

from localoss.hub import listing
from localoss.hub.client import Hub
from localoss.hub.errors import DownloadError

FILE = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
MANY_DIGITS = "9" * 5000
BOMB = gzip.compress(bytes(64 << 20), 9)


class Hostile(BaseHTTPRequestHandler):
    """Answers a listing by `listing(self)`, all else by `file(self)`; `sent` counts bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        is_listing = self.path.startswith("/api/models/")
        with contextlib.suppress(OSError):
            (self.server.listing if is_listing else self.server.file)(self)
        self.close_connection = True

    do_HEAD = do_GET

    def say(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.server.sent += len(content)

    def say_for_ever(self, chunk, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.stopping and self.server.sent < 1 << 30:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.server.sent += len(chunk)


def listed(*files, **more):
    text = json.dumps({"sha": COMMIT, "siblings": [*files]} | more)
    return lambda handler: handler.say(text.encode())


def raw(text, **headers):
    return lambda handler: handler.say(text if isinstance(text, bytes) else text.encode(), **headers)


def sized(text):
    """A listing whose one file has `text` as its size."""
    return raw(json.dumps({"sha": COMMIT, "siblings": [FILE | {"size": 12345}]}).replace("12345", text))


LISTINGS = {
    **{f"size {text[:12]}": sized(text) for text in (
        '"12"', "NaN", "1e400", "-1", "true", "[]", "1.5", str(10**30), MANY_DIGITS, '{"a": 1}', "Infinity",
    )},
    "200,000 levels": raw('{"sha": ' + "[" * 200_000),
    "200,000 levels and back": raw("[" * 200_000 + "]" * 200_000),
    "a level for each sibling": raw('{"siblings":' * 100_000),
    "endless spaces": lambda handler: handler.say_for_ever(b" " * 65536),
    "endless list": lambda handler: handler.say_for_ever(b"[[[[[[[[" * 8192),
    "endless error": lambda handler: handler.say_for_ever(b"no " * 20000, status=400),
    "a bomb": raw(BOMB, Content_Encoding="gzip"),
    "a bomb as an error": raw(BOMB, status=400, Content_Encoding="gzip"),
    "an endless bomb": lambda handler: handler.say_for_ever(BOMB, Content_Encoding="gzip"),
    "length of 5,000 digits": raw(b"{}", Content_Length=MANY_DIGITS),
    "length below 0": raw(b"{}", Content_Length="-5"),
    "length that is text": raw(b"{}", Content_Length="many"),
    "nothing": raw(b""), "null": raw("null"), "number": raw("7"), "no UTF-8": raw(b'{"sha": "\xff\xfe'),
    "siblings is text": listed(siblings="abc"), "sibling is a number": listed(7),
    "sibling is null": listed(None), "name is missing": listed({"size": 3}),
    "name is a number": listed(FILE | {"rfilename": 7}),
    "lfs is text": listed(FILE | {"lfs": "x"}), "checksum is a list": listed(FILE | {"lfs": {"sha256": [1]}}),
    "checksum is long": listed(FILE | {"lfs": {"sha256": "a" * 65}}),
    "blob is a number": listed(FILE | {"blobId": 1}),
    "commit is a number": listed(FILE, sha=5), "commit is a path": listed(FILE, sha="../" * 13 + "a"),
}  # fmt: skip
GOOD = listed(FILE)
FILES = {
    "range of 5,000 digits": raw(b"{}", status=206, Content_Range=f"bytes 0-1/{MANY_DIGITS}"),
    "range from 5,000 digits": raw(b"{}", status=206, Content_Range=f"bytes {MANY_DIGITS}-1/2"),
    "range that is text": raw(b"{}", status=206, Content_Range="bytes a-b/c"),
    "range in other digits": raw(b"{}", status=206, Content_Range="bytes \xb2-1/2"),
    "length of 5,000 digits": raw(b"{}", Content_Length=MANY_DIGITS),
    "linked size of text": raw(b"{}", X_Linked_Size="many", X_Repo_Commit=COMMIT),
    "linked size of 5,000 digits": raw(b"{}", X_Linked_Size=MANY_DIGITS, X_Repo_Commit=COMMIT),
    "wait of 5,000 digits": raw(b"{}", status=503, Retry_After=MANY_DIGITS),
    "wait in other digits": raw(b"{}", status=503, Retry_After="\xb2"),
    "endless": lambda handler: handler.say_for_ever(b"x" * 65536),
    "a bomb": raw(BOMB, Content_Encoding="gzip"),
    "elsewhere": raw(b"", status=302, Location="file:///etc/passwd"),
    "round and round": raw(b"", status=302, Location="/somewhere"),
}


@pytest.fixture
def hostile(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads, server.block_on_close = True, False
    server.sent, server.stopping, server.file = 0, False, raw(b"{}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(listing, "_MOST_S", 5.0)
    monkeypatch.setattr(listing, "_MOST_BYTES", 1 << 20)
    yield server
    server.stopping = True
    server.shutdown()
    server.server_close()


def refused(server):
    """What pull would say, which is one line; that little was asked for."""
    with pytest.raises(DownloadError) as raised:
        Hub("owner/name", patience=QUICK).small_file("config.json")
    said = str(raised.value)
    assert "\n" not in said and len(said) < 400, said
    assert server.sent < 64 << 20
    return said


@pytest.mark.parametrize("name", LISTINGS)
def test_listings(name, hostile):
    hostile.listing = LISTINGS[name]
    refused(hostile)


@pytest.mark.parametrize("name", FILES)
def test_files(name, hostile):
    hostile.listing, hostile.file = GOOD, FILES[name]
    refused(hostile)


def test_dripping_listings_end(hostile, monkeypatch):
    monkeypatch.setattr(listing, "_MOST_S", 0.5)

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not hostile.stopping:
            handler.wfile.write(b" ")
            threading.Event().wait(0.05)

    hostile.listing = drip
    assert "not whole after" in refused(hostile)


# Linux counts what a process had before its exec, which is all that its parent has: a small parent measures.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def pull(server, tmp_path):
    """`localoss pull` as a process: code, what it says, and its peak of memory in MB."""
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "LOCALOSS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, sys.executable, "-m", "localoss", "pull", "owner/name"],
        env=environment | {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"},
        capture_output=True, text=True,
    )  # fmt: skip
    used = int(done.stdout.split()[-1])
    return done.returncode, done.stderr, used / (1024 if sys.platform == "linux" else 1 << 20)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs what a process used")
@pytest.mark.parametrize("name", ["an endless bomb", "200,000 levels"])
def test_the_command(name, hostile, tmp_path):
    hostile.listing = LISTINGS[name]
    code, said, used_mb = pull(hostile, tmp_path)
    assert code in (1, 2) and "Traceback" not in said and said.count("error:") == 1
    assert used_mb < 500


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.soak)])
def test_mutated_listings(count, hostile):
    """Characters and values of a good listing are changed: it is read, or refused in a line."""
    rng = random.Random(count)
    good = {"sha": COMMIT, "siblings": [FILE | {"rfilename": f"f{n}"} for n in range(3)] + [FILE]}
    wrong = [b"", b"9" * 5000, b"[", b"{", b"null", b"-", b'"', b"1e999", b"NaN", b"\\ud800", b"true,"]
    read = 0
    for _ in range(count):
        text = bytearray(json.dumps(good).encode())
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choice([*wrong, bytes([rng.randrange(256)])])
        hostile.listing = raw(bytes(text))
        try:
            Hub("owner/name", patience=QUICK)
            read += 1
        except DownloadError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, text
    assert read < count
