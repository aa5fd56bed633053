"""A server of localoss in a thread of the test, with real sockets, on any engine."""

import contextlib
import datetime
import gc
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx2
import openai
import uvicorn

from localoss.chat import harmony
from localoss.hub.registry import canonical_name
from localoss.server.app import build_app
from localoss.server.core import models as _models
from localoss.server.core.connections import Connections, configuration
from localoss.server.core.guard import LOOPBACK
from localoss.server.core.keys import Keys
from localoss.server.core.models import Models
from localoss.server.core.pool import SequencePool
from localoss.server.core.scheduler import Scheduler
from localoss.server.core.service import Service

MODEL = "tiny"
# The day is in every prompt, and noise says something else on another day.
_ONE_DAY = SimpleNamespace(date=SimpleNamespace(today=lambda: datetime.date(2026, 3, 7)))
_PATIENCE_S = 300  # a busy machine is no fault of the server
# Without TLS: httpx2 would read all of the system's certificates for each request.
_ASKING: dict[str, Any] = {"timeout": _PATIENCE_S, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}


@dataclass
class Live:
    """A running server."""

    service: Service
    url: str
    models: Models

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=_PATIENCE_S, **options
        )

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, **_ASKING | options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, **_ASKING | options)

    def wait_until(self, condition: Any, seconds: float = 60.0) -> None:
        """Wait for something that the server does by itself; fails if it doesn't happen."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it didn't happen"
            time.sleep(0.01)


class OneModel:
    """A catalogue of a model that has no folder."""

    def __init__(self, engine: Any, name: str, aliases: Any) -> None:
        dtypes = SimpleNamespace(experts="mxfp4")
        self.first = SimpleNamespace(
            name=name, config=engine.config, dtypes=dtypes, size_bytes=1, digest="", created=0
        )
        self.first.base = self.first.adapter = None
        self.first.loaded_as = name
        self.first.folder = Path(__file__).parent
        self.aliases, self._context_tokens = tuple(aliases), engine.context_tokens

    def entries(self):
        return [self.first]

    def find(self, name: str):
        is_it = name in self.aliases or canonical_name(name) == canonical_name(self.first.name)
        return self.first if is_it else None

    def context_tokens(self, entry):
        return self._context_tokens


def one_model(
    engine: Any, name: str, aliases: Any, queue: int = 64, conversations: int = 4, parallel: int = 1
) -> Models:
    def start(engine: Any, name: str) -> Service:
        return Service(engine, name, Scheduler(engine, queue, parallel), SequencePool(engine, conversations))

    return Models(start(engine, name), OneModel(engine, name, aliases), start, capacity=queue)


@contextlib.contextmanager
def live(
    engine: Any,
    *,
    queue: int = 64,
    conversations: int = 4,
    parallel: int = 1,
    name: str = MODEL,
    aliases=(),
    models: Models | None = None,
    connections=None,
    api_key: str | None = None,
    keys: Keys | None = None,
    **options: Any,
):
    """Serve `engine` while the context lasts; options are build_app's. api_key: the server's own."""
    models = models or one_model(engine, name, aliases, queue, conversations, parallel)
    (held,) = models.held()
    keys = keys or (None if api_key is None else Keys(api_key))
    app = build_app(models, **{"hosts": LOOPBACK} | options, keys=keys)
    config = configuration(app, connections or Connections())
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server didn't start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        # The server's own collection looks at all that the tests ever loaded: a third of a second, each time.
        with (
            mock.patch.object(harmony, "datetime", _ONE_DAY),
            mock.patch.object(_models, "collect", gc.collect),
        ):
            yield Live(held.service, f"http://127.0.0.1:{port}", models)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=30)
        models.stop()
