"""Records on disk: a journal that takes them as they finish, sealed into one immutable segment when all are there.

A folder holds any number of sealed segments and at most one journal; both are JSON lines. Reading takes them together, so that a
stage that was killed, or is redone with some other settings, finds every record it can still use.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from sharpen.errors import RunError
from sharpen.records import SampleKey, Trajectory, Verdict
from sharpen.store.files import file_digest, sync_folder, write_atomic, writing

T = TypeVar("T", Trajectory, Verdict)
JOURNAL = "journal.jsonl"


class Segments(Generic[T]):
    """The records of one type in one folder, one for each sample key: the last written, so that a better verifier can judge again."""

    def __init__(self, folder: Path, record: type[T]) -> None:
        self.folder = folder
        self._decode: Callable[[bytes], T] = msgspec.json.Decoder(record).decode
        self._encode = msgspec.json.Encoder().encode
        self._journal: int | None = None
        self._written = self._synced = 0  # records since this was opened
        self._syncing: asyncio.Task[None] | None = None
        self.records: dict[SampleKey, T] = {}
        for record_ in self._read():
            self.records[record_.key] = record_

    def _read(self) -> Iterator[T]:
        for path in sorted(self.folder.glob("*.jsonl")):  # the journal sorts after any segment, whose name is hex
            lines = path.read_bytes().split(b"\n")
            if path.name == JOURNAL and lines[-1]:
                # A kill tore the last line: the record never counted as written. Cut it off, or the next append would join it.
                os.truncate(path, path.stat().st_size - len(lines[-1]))
                lines[-1] = b""
            for number, line in enumerate(lines, 1):
                if line:
                    try:
                        yield self._decode(line)
                    except msgspec.MsgspecError as error:
                        raise RunError(f"{path}:{number} cannot be read ({error}); delete that line to do it again") from error

    def append(self, record: T) -> None:
        """On disk, synced, before this returns."""
        with writing(self.folder):
            os.fdatasync(self._write(record))
        self._synced = self._written
        self.records[record.key] = record

    async def add(self, record: T) -> None:
        """On disk, synced, before this returns. Records that are added meanwhile share a sync, which blocks nobody else."""
        with writing(self.folder):
            journal = self._write(record)
            mine = self._written
            while self._synced < mine:
                if self._syncing is None:
                    self._syncing = asyncio.create_task(self._sync(journal))
                    self._syncing.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits any more
                await asyncio.shield(self._syncing)
        self.records[record.key] = record

    def _write(self, record: T) -> int:
        if self._journal is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(self.folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        line = self._encode(record) + b"\n"
        start = os.lseek(self._journal, 0, os.SEEK_END)
        try:
            written = os.write(self._journal, line)
            while written < len(line):
                written += os.write(self._journal, line[written:])
        except OSError:
            os.ftruncate(self._journal, start)  # a full disk leaves half a line otherwise
            raise
        self._written += 1
        return self._journal

    async def _sync(self, journal: int) -> None:
        upto = self._written
        try:
            await asyncio.to_thread(os.fdatasync, journal)
            self._synced = upto
        finally:
            self._syncing = None

    def close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def seal(self, keys: Iterable[SampleKey]) -> Path:
        """Write the records of ``keys``, sorted by key, as one immutable segment and drop everything else in the folder."""
        self.close()
        chosen = {key: self.records[key] for key in sorted(keys, key=order)}
        data = b"".join(self._encode(record) + b"\n" for record in chosen.values())
        staged = self.folder / "sealing"
        write_atomic(staged, data)
        sealed = self.folder / f"{file_digest(staged)[:16]}.jsonl"
        with writing(sealed):
            staged.replace(sealed)
            for path in self.folder.glob("*.jsonl"):
                if path != sealed:
                    path.unlink()
            sync_folder(self.folder)
        self.records = chosen
        return sealed


def order(key: SampleKey) -> tuple[Any, ...]:
    """The order of sample keys everywhere: training and sealing sort by it, so that order of arrival changes nothing."""
    return (key.task, key.index, key.model, key.environment, key.sampling)
