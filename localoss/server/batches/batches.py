"""The batches of a server: one after the other, beside what clients ask for meanwhile."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

from starlette.types import ASGIApp

from localoss.errors import LocalossError
from localoss.server.batches.journal import Journal, Request, read_requests
from localoss.server.batches.running import Progress, Stopped, asking, run_requests
from localoss.server.batches.store import KEY, FileStore, Object
from localoss.server.core.errors import ApiError
from localoss.server.core.keys import Client
from localoss.server.core.threads import in_thread

_DAY_S = 86_400
_OPEN = ("validating", "in_progress", "finalizing")


class Batches:
    """Runs the batches of `files` on `app`. Used on the event loop."""

    def __init__(self, files: FileStore, parallel: int) -> None:
        """parallel: how many answers the server writes side by side; one is left to others."""
        self.files = files
        self._at_once = max(1, parallel - 1)
        self._task: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._current: Object | None = None
        self._wanted = asyncio.Event()

    def start(self, app: ASGIApp) -> None:
        """Go on with what is open, and take up what comes."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(app))
        self._wanted.set()

    def create(
        self, file: str, endpoint: str, window: str, metadata: dict[str, str] | None, key: str
    ) -> Object:
        """A new batch of `key`'s, which runs when those before it are done."""
        now = int(time.time())
        times = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at")
        made: Object = {
            "id": f"batch_{secrets.token_hex(12)}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": file,
            "completion_window": window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + _DAY_S,
            **dict.fromkeys((*times, "cancelling_at", "cancelled_at")),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
            KEY: key,
        }
        self.files.put(made)
        return made

    def get(self, name: str, key: str) -> Object:
        """A batch as it is now. Raises: ApiError 404."""
        if self._current and self._current["id"] == name and self._current.get(KEY, "") == key:
            return self._current
        return self.files.get(name, key)

    def cancel(self, name: str, key: str) -> Object:
        """Stop a batch; what is done of it stays. Raises: ApiError 404."""
        batch = self.get(name, key)
        if batch["status"] in _OPEN:
            self._note(batch, "cancelling")
            if self._current is batch and self._running:
                self._running.cancel()
            else:
                self._note(batch, "cancelled")
        return batch

    async def _work(self, app: ASGIApp) -> None:
        while True:
            self._wanted.clear()
            for batch in reversed(await in_thread(self.files.all, "batch")):
                if batch["status"] in _OPEN:
                    self._current = batch
                    self._running = asyncio.create_task(self._run(app, batch))
                    await asyncio.wait({self._running})
                    self._current = self._running = None
            await self._wanted.wait()

    async def _run(self, app: ASGIApp, batch: Object) -> None:
        try:
            await self._answer(app, batch)
        except asyncio.CancelledError:
            if batch["status"] == "cancelling":
                await in_thread(self._keep, batch)
                self._note(batch, "cancelled")
        except Stopped:  # the server goes down: the next one goes on
            pass
        except (ApiError, LocalossError, OSError) as error:
            batch["errors"] = {"object": "list", "data": [{"code": "failed", "message": str(error)}]}
            self._note(batch, "failed")

    async def _answer(self, app: ASGIApp, batch: Object) -> None:
        total = await in_thread(lambda: sum(1 for _ in self._requests(batch)))
        self._note(batch, "in_progress")

        def told(progress: Progress) -> None:
            counts = {"total": total, "completed": progress.answered, "failed": progress.failed}
            batch["request_counts"] = counts

        with await in_thread(self._journal, batch) as journal:
            ask = asking(app, Client(batch.get(KEY, ""), "batch"))
            await run_requests(ask, self._requests(batch), journal, self._at_once, told, total=total)
            self._note(batch, "finalizing")
            await in_thread(journal.finish)
        await in_thread(self._keep, batch)
        self._note(batch, "completed")

    def _requests(self, batch: Object) -> Iterator[Request]:
        for request in read_requests(self.files.path(batch["input_file_id"], batch.get(KEY, ""))):
            if request.fault is None and request.url != batch["endpoint"]:
                request = replace(request, fault=f"url {request.url}: this batch is for {batch['endpoint']}")
            yield request

    def _journal(self, batch: Object) -> Journal:
        folder = self.files.folder
        return Journal(folder / f"{batch['id']}.out", folder / f"{batch['id']}.err")

    def _keep(self, batch: Object) -> None:
        """Make files of what was written: answers, and errors if there are any."""
        with self._journal(batch) as journal:
            journal.finish()
        for field, path in (("output_file_id", journal.out), ("error_file_id", journal.errors)):
            if path.exists():
                name, place = self.files.new_file()
                path.replace(place)
                kind = field.removesuffix("_file_id")
                self.files.add_file(name, f"{batch['id']}_{kind}.jsonl", "batch_output", batch.get(KEY, ""))
                batch[field] = name

    def _note(self, batch: Object, status: str) -> None:
        batch["status"] = status
        if f"{status}_at" in batch:
            batch[f"{status}_at"] = int(time.time())
        self.files.put(batch)
