"""An endpoint that is asked in batches: cheaper, and answered within a day or so.

Requests are gathered, submitted, waited for and merged here, whoever the provider is; ``endpoint_batch_openai.py`` and ``endpoint_batch_anthropic.py``
each speak one's protocol. ``endpoint_ledger.py`` keeps all of it on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from sharpen.errors import Failure, PolicyError, SettingsError, SharpenError, Stopped
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.base import Sampling
from sharpen.policies.endpoint import Batch, Endpoint, EndpointPolicy, Tools
from sharpen.policies.endpoint_batch_anthropic import MessageBatches
from sharpen.policies.endpoint_batch_api import Api, Calls, Error, Found, Seen, paid
from sharpen.policies.endpoint_batch_openai import OpenAIBatches
from sharpen.policies.endpoint_ledger import Entry, Ledger
from sharpen.policies.endpoint_wire import Completion, Trouble
from sharpen.store.files import digest

_QUEUE_FULL = "token_limit_exceeded"  # so many tokens are queued already; others of ours, or somebody else's of the same account


def _settled(found: Found) -> bool:
    """Whether to ask again would give the same."""
    return isinstance(found, Completion) or found.error.failure in ("context_length", "content_filter")


def _given(found: Found) -> Completion:
    if isinstance(found, Trouble):
        raise found.error
    return found


class BatchPolicy(EndpointPolicy):
    """An ``EndpointPolicy`` whose requests are gathered into batches. What is submitted is on disk before it is sent, and what was answered is never
    asked again: another policy with the same settings and folder goes on where this one stopped.

    A call that is cancelled leaves what was submitted; its answer is there for whoever asks the same again. Stopped where somebody cancels a batch.
    """

    def __init__(self, settings: Endpoint, folder: Path) -> None:
        assert settings.batch is not None
        super().__init__(settings)
        self.batch: Batch = settings.batch
        other = [settings.speaks] if settings.speaks != "openai" else []  # a batch of one API is none of the other
        self.ledger = Ledger(folder / digest([settings.urls, settings.model, *other]))
        (self._server,) = self._known
        self._url = self._server.url
        self._calls = Calls(self._url, settings, self._key, self._http, self.counts, lambda: bool(self._under_way), self._stop_if_closed)
        api = MessageBatches if settings.speaks == "anthropic" else OpenAIBatches
        self.api: Api = api(self._calls, self.ledger, self.batch)
        self._size = self.batch.size
        self._queue: dict[str, bytes] = {}
        self._waiting: dict[str, list[asyncio.Future[Found]]] = {}
        self._watched: dict[Entry, asyncio.Task[None]] = {}
        self._under_way: set[Entry] = set()
        self._gatherer: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self._over: SharpenError | None = None  # why nothing more is asked

    async def close(self) -> None:
        for task in (*self._watched.values(), *([self._gatherer] if self._gatherer else [])):
            task.cancel()
        for id in list(self._waiting):
            self._tell(id, self._is_closed())
        await super().close()
        self.ledger.close()

    # ------------------------------------------------------------ one request

    async def _ask(self, body: bytes, opening: bytes, sampling: Sampling, tools: Tools) -> Completion:
        await self._calls.patiently(lambda: self._start(self._server, sampling, tools))
        id = digest([body.decode(), sampling.seed])  # the seed tells tries apart where the body leaves it out
        if (kept := self._kept(id)) is not None:
            return kept
        tries = 0
        while isinstance(found := await self._answer_to(id, body), Trouble):
            tries += 1
            self.counts[found.error.failure or "dead"] += 1
            if found.then == "give up":
                break
            if tries > self.settings.retries:
                raise PolicyError(f"{found.error} (in {tries} batches)", found.error.failure) from found.error
        return _given(found)

    def _kept(self, id: str) -> Completion | None:
        """What an earlier batch answered, raised where that was a failure of the policy's own. Other errors are asked again."""
        for line in self.ledger.answers(id):
            found = self._read(line)
            if _settled(found):
                return _given(found)
        return None

    async def _answer_to(self, id: str, body: bytes) -> Found:
        """What the next batch to end says of the request."""
        if self._over is not None:
            raise self._over
        if self._closed:
            raise self._is_closed()
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(future)
        self._queue[id] = self.api.line(id, body)
        if (entry := self.ledger.entry_of(id)) is not None:
            self._watch(entry)
        else:
            self._gather()
        try:
            return await future
        finally:
            others = self._waiting.get(id, [])
            if future in others:
                others.remove(future)
            if not others:
                self._waiting.pop(id, None)
                self._queue.pop(id, None)

    def _tell(self, id: str, found: Found | Exception) -> None:
        self._queue.pop(id, None)
        for future in self._waiting.pop(id, []):
            if future.done():
                continue
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

    def _read(self, line: bytes) -> Found:
        """An answer's line, by the same rules as the answer to a single request."""
        found = self.api.read(line)
        return found if isinstance(found, Trouble) else paid(self._vetted(self._server, found))

    # ------------------------------------------------------------ a batch

    def _gather(self) -> None:
        self._came.set()
        if self._gatherer is None or self._gatherer.done():
            self._gatherer = asyncio.create_task(self._gathered())

    async def _gathered(self) -> None:
        """Plans batches of what waits to be submitted, until nothing does."""
        while left := self._unplanned():
            with contextlib.suppress(TimeoutError):
                while len(left) < self._size:
                    self._came.clear()
                    async with asyncio.timeout(self.batch.quiet_s):
                        await self._came.wait()
                    left = self._unplanned()
            lines: dict[str, bytes] = {}
            room = self.batch.max_mb * 2**20
            for id in self._unplanned()[: self._size]:
                room -= len(self._queue[id]) + 1
                if lines and room < 0:
                    break
                lines[id] = self._queue[id]
            if lines:
                try:
                    self._watch(self.ledger.plan(lines))
                except Exception as error:  # a full disk: nothing is sent that is not written
                    for id in lines:
                        self._tell(id, error)

    def _unplanned(self) -> list[str]:
        return [id for id in self._queue if self.ledger.entry_of(id) is None]

    def _watch(self, entry: Entry) -> None:
        if entry not in self._watched:
            self._watched[entry] = asyncio.create_task(self._seen_through(entry))

    async def _seen_through(self, entry: Entry) -> None:
        """Submits the batch where that is still to be done, waits for its end, and tells those who wait."""
        try:
            if not entry.batch:  # one that may have been submitted before is looked for, not sent again
                id = await self.api.submit(entry) if entry.fresh else await self.api.find(entry)
                if id is None:
                    self.ledger.drop(entry)
                    self._gather()
                    return
                self.ledger.submitted(entry, id, self._url)
            self._under_way.add(entry)
            batch = await self._end_of(entry)
            self._under_way.discard(entry)
            if batch.state == "failed":
                await self._failed(entry, batch)
                return
            self._answered(entry, batch, [await self._calls.content(path) for path in batch.files])
        except Exception as error:
            if isinstance(error, SettingsError):
                self._over = error
            if entry.batch and isinstance(error, PolicyError) and error.failure == "refused" and error is not self._over:
                kept = f"{self.ledger.folder / entry.name}.*"
                error = PolicyError(f"{error}; give the key that {entry.batch} was submitted with, or delete {kept} to ask anew", "refused")
            for id in entry.ids:
                self._tell(id, error)
        finally:
            self._under_way.discard(entry)
            self._watched.pop(entry, None)

    async def _end_of(self, entry: Entry) -> Seen:
        while (batch := await self._calls.patiently(lambda: self.api.look(entry.batch))).state == "going":
            await asyncio.sleep(self.batch.poll_s)
        return batch

    async def _failed(self, entry: Entry, batch: Seen) -> None:
        """The provider did not take the file. Lines that it names are refused and the others submitted again; where it names none, or all, nothing is."""
        errors = batch.errors or (Error(),)
        self.ledger.finish(entry, ())
        if errors[0].code == _QUEUE_FULL and (self._under_way or len(entry.ids) > 1):
            if not self._under_way:
                self._size = max(1, len(entry.ids) // 2)
            await asyncio.sleep(self.batch.poll_s)
            while self._under_way:
                await asyncio.sleep(self.batch.poll_s)
            self._gather()
            return
        said = f"{self._url} did not take batch {batch.id}"
        bad = {error.line: error for error in reversed(errors) if error.line and error.line <= len(entry.ids)}
        if not bad or len(bad) == len(entry.ids):
            first = errors[0]
            failure: Failure = "throttled" if first.code == _QUEUE_FULL else "refused"
            where = f"line {first.line}: " if first.line else ""
            self._over = PolicyError(
                f"{said}: {where}{self._calls.words(first)}; its requests are in {self.ledger.requests(entry)}", failure
            )
            raise self._over
        for line, error in bad.items():
            self._tell(entry.ids[line - 1], Trouble(PolicyError(f"{said}: line {line}: {self._calls.words(error)}", "refused"), "give up"))
        self._gather()

    def _answered(self, entry: Entry, batch: Seen, files: list[bytes]) -> None:
        """Tells everybody what the files say of them. Lines in any order; a second one for the same request is left aside, an answer before an error."""
        found: dict[str, Found] = {}
        wanted = set(entry.ids)
        for id, line in self.ledger.finish(entry, files):
            answer = self._read(line)
            if id not in wanted or id in found:
                self.counts["malformed"] += 1
            if id in wanted and (id not in found or (isinstance(answer, Completion) and not isinstance(found[id], Completion))):
                found[id] = answer
        left = {id for id in wanted if id not in found or not _settled(found[id])} if batch.state == "cancelled" else set()
        if left:
            self._over = Stopped(
                f"batch {batch.id} was cancelled at {self._url}, with {len(left)} of {len(wanted)} requests unanswered; what was answered is kept, "
                "and the same command asks for the rest again"
            )
        for id in entry.ids:
            if id in left and self._over is not None:
                self._tell(id, self._over)
            elif id in found:
                self._tell(id, found[id])
            elif batch.state == "expired":
                self._tell(id, self._calls.missed(f" before batch {batch.id} expired"))
            else:
                self._tell(id, wire.malformed(f"{self._url} left the request {id} out of what it answered to batch {batch.id}"))

    def _stop_if_closed(self) -> None:
        if self._closed:
            raise self._is_closed()
