"""OpenAI's batches, as https://platform.openai.com/docs/guides/batch has them.

A file of requests, each with an id of ours, is uploaded (POST /files) and submitted (POST /batches) with our name on it; the batch is looked at
(GET /batches/ID) until it ends; then there are a file of answers and one of errors, lines in any order (GET /files/ID/content).
"""

from __future__ import annotations

import re
from typing import Any, Literal

import aiohttp
import msgspec

from sharpen.policies import endpoint_wire as wire
from sharpen.policies.endpoint import Batch
from sharpen.policies.endpoint_batch_api import Calls, Error, Found, Seen, paid
from sharpen.policies.endpoint_ledger import Entry, Ledger
from sharpen.policies.endpoint_wire import Trouble

_PATH = "/v1/chat/completions"  # of each request, wherever the server itself has it
_PAGES = 10  # of 100 batches each, the latest first, in which one of ours is looked for
_STATES: dict[str, Literal["going", "completed", "expired", "cancelled", "failed"]] = {
    **dict.fromkeys(("validating", "in_progress", "finalizing", "cancelling"), "going"),
    "completed": "completed",
    "expired": "expired",
    "cancelled": "cancelled",
    "failed": "failed",
}
_PASSES = re.compile(r"expired|server|internal|overload|unavailable|timeout|rate.?limit", re.IGNORECASE)


class _File(msgspec.Struct):
    id: str


class _Errors(msgspec.Struct):
    data: list[Error] | None = None


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
    error: Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode


class OpenAIBatches:
    name = "batches"

    def __init__(self, calls: Calls, ledger: Ledger, batch: Batch) -> None:
        self._calls = calls
        self._ledger = ledger
        self._window = batch.window

    def line(self, id: str, body: bytes) -> bytes:
        return msgspec.json.encode({"custom_id": id, "method": "POST", "url": _PATH, "body": msgspec.Raw(body)})

    def read(self, line: bytes) -> Found:
        calls = self._calls
        try:
            said = _answer(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return calls.unreadable(error)
        if said.response is not None:
            return paid(wire.read(calls.url, said.response.status_code, {}, bytes(said.response.body), calls.key))
        if said.error is None:
            return wire.malformed(f"{calls.url} answered with a line that holds neither a response nor an error")
        if _PASSES.search(said.error.code or ""):
            return calls.missed(f": {calls.words(said.error)}")
        return wire.trouble(calls.url, 400, {}, msgspec.json.encode({"error": said.error}), calls.key)

    async def submit(self, entry: Entry) -> str:
        file = await self._calls.patiently(lambda: self._upload(entry))
        return await self._calls.patiently(lambda: self._created(entry, file.id))

    async def _upload(self, entry: Entry) -> _File | Trouble:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", self._ledger.requests(entry).read_bytes(), filename=f"{entry.name}.jsonl", content_type="application/jsonl")
        return await self._calls.call("POST", "/files", _File, form())

    async def _created(self, entry: Entry, file: str) -> str | Trouble:
        if not entry.fresh and (found := await self._found(entry)) is not None:  # made, though its answer was lost
            return found
        entry.fresh = False
        asked = {"input_file_id": file, "endpoint": _PATH, "completion_window": self._window, "metadata": {"sharpen": entry.name}}
        made = await self._calls.call("POST", "/batches", _Batch, msgspec.json.encode(asked))
        return made if isinstance(made, Trouble) else made.id

    async def find(self, entry: Entry) -> str | None:
        """By our name on it. None, too, where the server does not list batches."""
        return await self._calls.patiently(lambda: self._found(entry))

    async def _found(self, entry: Entry) -> str | Trouble | None:
        after = ""
        for _ in range(_PAGES):
            page = await self._calls.call("GET", f"/batches?limit=100{after}", _Batches)
            if isinstance(page, Trouble):
                return None if page.then == "give up" else page
            for batch in page.data:
                if (batch.metadata or {}).get("sharpen") == entry.name:
                    return batch.id
            if not page.has_more or not page.data:
                return None
            after = f"&after={page.data[-1].id}"
        return None

    async def look(self, id: str) -> Seen | Trouble:
        found = await self._calls.call("GET", f"/batches/{id}", _Batch)
        if isinstance(found, Trouble):
            return found
        if found.status not in _STATES:
            return wire.malformed(f"{self._calls.url} says of batch {id} that it is {found.status!r}")
        files = tuple(f"/files/{file}/content" for file in (found.output_file_id, found.error_file_id) if file)
        return Seen(found.id, _STATES[found.status], files, tuple((found.errors and found.errors.data) or ()))
