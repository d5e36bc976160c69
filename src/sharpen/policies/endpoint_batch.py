"""An endpoint that is asked in batches: cheaper, and answered within a day or so. Not here: Anthropic's Message Batches, which is another protocol.

As https://platform.openai.com/docs/guides/batch has it: a file of requests, each with an id of ours, is uploaded (POST /files) and submitted (POST
/batches); the batch is looked at (GET /batches/ID) until it ends; then there are a file of answers and one of errors, lines in any order (GET
/files/ID/content). ``endpoint_ledger.py`` keeps all of it on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from sharpen.errors import Failure, PolicyError, SettingsError, SharpenError, Stopped
from sharpen.policies import endpoint_wire as wire
from sharpen.policies.base import Sampling
from sharpen.policies.endpoint import Batch, Endpoint, EndpointPolicy, Tools
from sharpen.policies.endpoint_ledger import Entry, Ledger
from sharpen.policies.endpoint_wire import Completion, Trouble
from sharpen.store.files import digest

T = TypeVar("T")
PATH = "/v1/chat/completions"  # of each request, wherever the server itself has it
_MOST = 2 << 30  # bytes of an output file
_FILE_S = 600.0  # for a file to go either way
_PAGES = 10  # of 100 batches each, the latest first, in which one of ours is looked for
_GOING = ("validating", "in_progress", "finalizing", "cancelling")
_ENDED = ("completed", "expired", "cancelled", "failed")
_PASSES = re.compile(r"expired|server|internal|overload|unavailable|timeout|rate.?limit", re.IGNORECASE)
_QUEUE_FULL = "token_limit_exceeded"  # so many tokens are queued already; others of ours, or somebody else's of the same account


class _File(msgspec.Struct):
    id: str


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Errors(msgspec.Struct):
    data: list[_Error] | None = None


class _Batch(msgspec.Struct):
    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Errors | None = None
    metadata: dict[str, Any] | None = None


class _Batches(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    """A line of an output or error file."""

    response: _Response | None = None
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode
_Found = Completion | Trouble


def _settled(found: _Found) -> bool:
    """Whether to ask again would give the same."""
    return isinstance(found, Completion) or found.error.failure in ("context_length", "content_filter")


def _given(found: _Found) -> Completion:
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
        self.ledger = Ledger(folder / digest([settings.urls, settings.model]))
        (self._server,) = self._known
        self._url = self._server.url
        self._size = self.batch.size
        self._queue: dict[str, bytes] = {}
        self._waiting: dict[str, list[asyncio.Future[_Found]]] = {}
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
        await self._patiently(lambda: self._start(self._server, sampling, tools))
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

    async def _answer_to(self, id: str, body: bytes) -> _Found:
        """What the next batch to end says of the request."""
        if self._over is not None:
            raise self._over
        if self._closed:
            raise self._is_closed()
        future: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(future)
        self._queue[id] = msgspec.json.encode({"custom_id": id, "method": "POST", "url": PATH, "body": msgspec.Raw(body)})
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

    def _tell(self, id: str, found: _Found | Exception) -> None:
        self._queue.pop(id, None)
        for future in self._waiting.pop(id, []):
            if future.done():
                continue
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

    def _read(self, line: bytes) -> _Found:
        """An answer's line, by the same rules as the answer to a single request."""
        try:
            said = _answer(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return wire.malformed(f"{self._url} answered with a line that cannot be read: {self._line(error)}")
        if said.response is not None:
            found = wire.read(self._url, said.response.status_code, {}, bytes(said.response.body), self._key)
            vetted = found if isinstance(found, Trouble) else self._vetted(self._server, found)
            if isinstance(vetted, Trouble) and vetted.error.failure == "malformed":
                return replace(vetted, then="give up")  # it is paid for; with settings that allow it, it counts
            return vetted
        if said.error is None:
            return wire.malformed(f"{self._url} answered with a line that holds neither a response nor an error")
        if _PASSES.search(said.error.code or ""):
            return Trouble(PolicyError(f"{self._url} did not get to it: {self._words(said.error)}", "overloaded"), "again")
        return wire.trouble(self._url, 400, {}, msgspec.json.encode({"error": said.error}), self._key)

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
            if not entry.batch and not await self._submitted(entry):
                self.ledger.drop(entry)
                self._gather()
                return
            self._under_way.add(entry)
            batch = await self._end_of(entry)
            self._under_way.discard(entry)
            if batch.status == "failed":
                await self._failed(entry, batch)
                return
            files = [await self._content(id) for id in (batch.output_file_id, batch.error_file_id) if id]
            self._answered(entry, batch, files)
        except Exception as error:
            if entry.batch and isinstance(error, PolicyError) and error.failure == "refused" and error is not self._over:
                kept = f"{self.ledger.folder / entry.name}.*"
                error = PolicyError(f"{error}; give the key that {entry.batch} was submitted with, or delete {kept} to ask anew", "refused")
            for id in entry.ids:
                self._tell(id, error)
        finally:
            self._under_way.discard(entry)
            self._watched.pop(entry, None)

    async def _submitted(self, entry: Entry) -> bool:
        """Whether the provider has the batch; its id is then on disk. One that may have been submitted before is looked for, not sent again."""
        if entry.fresh:
            file = await self._patiently(lambda: self._upload(entry))
            batch = await self._patiently(lambda: self._created(entry, file.id))
        else:
            found = await self._patiently(lambda: self._found(entry))
            if found is None:
                return False
            batch = found
        self.ledger.submitted(entry, batch.id, self._url)
        return True

    async def _created(self, entry: Entry, file: str) -> _Batch | Trouble:
        if not entry.fresh and (found := await self._found(entry)) is not None:  # made, though its answer was lost
            return found
        entry.fresh = False
        asked = {"input_file_id": file, "endpoint": PATH, "completion_window": self.batch.window, "metadata": {"sharpen": entry.name}}
        return await self._call("POST", "/batches", _Batch, msgspec.json.encode(asked))

    async def _found(self, entry: Entry) -> _Batch | Trouble | None:
        """The batch with our name on it. None where there is none, or the server does not list batches."""
        after = ""
        for _ in range(_PAGES):
            page = await self._call("GET", f"/batches?limit=100{after}", _Batches)
            if isinstance(page, Trouble):
                return None if page.then == "give up" else page
            for batch in page.data:
                if (batch.metadata or {}).get("sharpen") == entry.name:
                    return batch
            if not page.has_more or not page.data:
                return None
            after = f"&after={page.data[-1].id}"
        return None

    async def _end_of(self, entry: Entry) -> _Batch:
        async def look() -> _Batch | Trouble:
            found = await self._call("GET", f"/batches/{entry.batch}", _Batch)
            if isinstance(found, _Batch) and found.status not in (*_GOING, *_ENDED):
                return wire.malformed(f"{self._url} says of batch {entry.batch} that it is {found.status!r}")
            return found

        while (batch := await self._patiently(look)).status not in _ENDED:
            await asyncio.sleep(self.batch.poll_s)
        return batch

    async def _failed(self, entry: Entry, batch: _Batch) -> None:
        """The provider did not take the file. Lines that it names are refused and the others submitted again; where it names none, or all, nothing is."""
        errors = batch.errors.data if batch.errors is not None and batch.errors.data else [_Error()]
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
            self._over = PolicyError(f"{said}: {where}{self._words(first)}; its requests are in {self.ledger.requests(entry)}", failure)
            raise self._over
        for line, error in bad.items():
            self._tell(entry.ids[line - 1], Trouble(PolicyError(f"{said}: line {line}: {self._words(error)}", "refused"), "give up"))
        self._gather()

    def _answered(self, entry: Entry, batch: _Batch, files: list[bytes]) -> None:
        """Tells everybody what the files say of them. Lines in any order; a second one for the same request is left aside, an answer before an error."""
        found: dict[str, _Found] = {}
        wanted = set(entry.ids)
        for id, line in self.ledger.finish(entry, files):
            answer = self._read(line)
            if id not in wanted or id in found:
                self.counts["malformed"] += 1
            if id in wanted and (id not in found or (isinstance(answer, Completion) and not isinstance(found[id], Completion))):
                found[id] = answer
        left = {id for id in wanted if id not in found or not _settled(found[id])} if batch.status == "cancelled" else set()
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
            elif batch.status == "expired":
                self._tell(
                    id, Trouble(PolicyError(f"{self._url} did not get to it before batch {batch.id} expired", "overloaded"), "again")
                )
            else:
                self._tell(id, wire.malformed(f"{self._url} left the request {id} out of what it answered to batch {batch.id}"))

    # ------------------------------------------------------------ the wire

    async def _patiently(self, ask: Callable[[], Awaitable[T | Trouble]]) -> T:
        """What ``ask`` gives. Troubles that may pass are waited out, for ``patience`` seconds."""
        began, wait = time.monotonic(), self.settings.backoff
        while True:
            if self._closed:
                raise self._is_closed()
            found = await ask()
            if not isinstance(found, Trouble):
                return found
            self.counts[found.error.failure or "dead"] += 1
            if found.then == "give up" or time.monotonic() - began > self.settings.patience:
                raise found.error
            await asyncio.sleep(max(wait, found.retry_after))
            wait = min(60.0, 2 * wait)

    def _words(self, error: _Error) -> str:
        words = f"{error.message or 'no message'}{f' ({error.code})' if error.code else ''}"
        return " ".join(wire.without_key(words, self._key).split())[:300]

    async def _upload(self, entry: Entry) -> _File | Trouble:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", self.ledger.requests(entry).read_bytes(), filename=f"{entry.name}.jsonl", content_type="application/jsonl")
        return await self._call("POST", "/files", _File, form())

    async def _content(self, file: str) -> bytes:
        async def get() -> bytes | Trouble:
            found = await self._http("GET", f"{self._url}/files/{file}/content", self._url, most=_MOST, seconds=_FILE_S)
            if isinstance(found, Trouble):
                return found
            status, headers, content = found
            return content if status == 200 else wire.trouble(self._url, status, headers, content, self._key)

        return await self._patiently(get)

    async def _call(self, method: str, path: str, kind: type[T], body: bytes | aiohttp.Payload | None = None) -> T | Trouble:
        seconds = _FILE_S if isinstance(body, aiohttp.Payload) else 0.0
        found = await self._http(method, self._url + path, self._url, body, seconds=seconds)
        if isinstance(found, Trouble):
            return found
        status, headers, content = found
        if method == "POST" and status in (404, 405, 501):
            line = wire.trouble(self._url, status, headers, content, self._key).error
            self._over = SettingsError(
                f"no batch API at POST {path}: {line}; take batch out of the engine, and it is asked as a plain endpoint"
            )
            raise self._over
        if status not in (200, 201):
            return wire.trouble(self._url, status, headers, content, self._key)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return wire.malformed(f"{self._url}{path} answered with something else than OpenAI's batch API: {self._line(error)}")
