"""A server on loopback that speaks the hub's API as huggingface_hub calls it, and fails as told.

GET  /api/models/OWNER/NAME[/revision/REV]?blobs=True   listing: sizes, sha256 of large files
HEAD /OWNER/NAME/resolve/REV/FILE                       ETag, X-Repo-Commit, X-Linked-Etag, redirect
GET  the same for small files; large ones lie on a second port, as on a server for files of its own
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 16 << 10
# What can be told to happen to the next request of a file, besides a status code.
CLOSE, STALL, SILENT, WRONG, RESIZED, EXPIRED = (
    "close half way", "stall half way", "silent", "wrong byte", "wrong size", "expired",
)  # fmt: skip


class HubServer:
    """Serves `repositories`, name -> folder. `faults[file]` are taken one at a time, by its next requests.

    `served` counts the bytes sent of each file; `requests` are (method, path, headers). `bytes_per_s`
    slows every connection down. `listing` may change what the listing says.
    """

    def __init__(self, repositories):
        self.repositories = repositories
        self.commit = COMMIT
        self.faults = defaultdict(list)
        self.served = Counter()
        self.requests = []
        self.bytes_per_s = None
        self.gated = set()
        self.token = None  # the only one that is taken, where a repository is gated
        self.listing = lambda listing: listing
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._hub = self._start(_HubHandler)
        self._files = self._start(_FileHandler)
        self.endpoint, self.files_at = (
            f"http://127.0.0.1:{server.server_port}" for server in (self._hub, self._files)
        )

    def _start(self, handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.block_on_close = False
        server.hub = self
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self):
        self.stopping.set()
        for server in (self._hub, self._files):
            server.shutdown()
            server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def next_fault(self, name):
        with self.lock:
            return self.faults[name].pop(0) if self.faults[name] else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    @property
    def hub(self):
        return self.server.hub

    def note(self):
        with self.hub.lock:
            headers = {key.lower(): value for key, value in self.headers.items()}
            self.hub.requests.append((self.command, self.path, headers))

    def answer(self, status, headers=(), content=b""):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code=None, message=""):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        if status in (429, 503):
            headers["Retry-After"] = "0"
        self.answer(status, headers)

    def send_file(self, path, headers=()):
        """The range asked for of file `path`, with the next fault of its name."""
        if self.command == "HEAD":
            return self.answer(200, dict(headers) | {"Content-Length": str(path.stat().st_size)})
        fault = self.hub.next_fault(path.name)
        if isinstance(fault, int):
            return self.refuse(fault)
        if fault == EXPIRED:
            return self.refuse(403)
        if fault == SILENT:
            self.close_connection = True
            return self.hub.stopping.wait(30)
        size = path.stat().st_size
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(span[1]) if span else 0
        last = min(int(span[2]), size - 1) if span and span[2] else size - 1
        told = size + (fault == RESIZED)
        self.send_response(206 if span else 200)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{told}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            content = bytearray(file.read(last + 1 - first))
        if fault == WRONG and content:
            content[len(content) // 2] ^= 0x40
        if fault in (CLOSE, STALL):
            content = content[: len(content) // 2]
        self.send_slowly(path.name, content)
        if fault == STALL:
            self.hub.stopping.wait(30)
        if fault in (CLOSE, STALL):
            self.close_connection = True

    def send_slowly(self, name, content):
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = content[start : start + CHUNK_BYTES]
            self.wfile.write(chunk)
            with self.hub.lock:
                self.hub.served[name] += len(chunk)
            if self.hub.bytes_per_s:
                time.sleep(len(chunk) / self.hub.bytes_per_s)


class _HubHandler(_Handler):
    def do_GET(self):
        self.note()
        url = urlsplit(self.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", url.path):
            return self.send_listing(match[1], unquote(match[2] or "main"), parse_qs(url.query))
        self.send_resolved()

    def do_HEAD(self):
        self.note()
        self.send_resolved()

    def folder(self, name, revision):
        """The folder of repository `name`; None after the refusal was sent."""
        if name not in self.hub.repositories:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", self.hub.commit):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            return Path(self.hub.repositories[name])
        return None

    def send_listing(self, name, revision, query):
        fault = self.hub.next_fault("listing")
        if isinstance(fault, int):
            return self.refuse(fault)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "expired":
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        folder = self.folder(name, revision)
        if folder is None:
            return
        siblings = [
            _sibling(path, folder, "blobs" in query) for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        listing = {"id": name, "modelId": name, "sha": self.hub.commit, "siblings": siblings}
        content = json.dumps(self.hub.listing(listing)).encode()
        self.answer(200, {"Content-Type": "application/json"}, content)

    def send_resolved(self):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        if not match:
            return self.refuse(404)
        folder = self.folder(match[1], unquote(match[2]))
        if folder is None:
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if match[1] in self.hub.gated and token != self.hub.token:
            return self.refuse(401 if not token else 403, "GatedRepo", "Access to model is restricted")
        path = folder / unquote(match[3])
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{_blob_sha1(path)}"'}
        if not _is_large(path):
            return self.send_file(path, headers)
        headers |= {
            "X-Linked-Etag": f'"{_sha256(path)}"',
            "X-Linked-Size": str(path.stat().st_size),
            "Location": f"{self.hub.files_at}/{match[1]}/{match[3]}?signature=x",
        }
        self.answer(302, headers)


class _FileHandler(_Handler):
    def do_GET(self):
        self.note()
        owner, name, file = unquote(urlsplit(self.path).path).strip("/").split("/", 2)
        path = Path(self.hub.repositories[f"{owner}/{name}"]) / file
        if not path.is_file():
            return self.refuse(404)
        self.send_file(path)


def _is_large(path):
    return path.suffix in (".safetensors", ".gguf", ".bin")


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _blob_sha1(path):
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _sibling(path, folder, with_sizes):
    sibling = {"rfilename": path.relative_to(folder).as_posix()}
    if with_sizes:
        size = path.stat().st_size
        sibling |= {"size": size, "blobId": _blob_sha1(path)}
        if _is_large(path):
            sibling["lfs"] = {"sha256": _sha256(path), "size": size, "pointerSize": 134}
    return sibling
