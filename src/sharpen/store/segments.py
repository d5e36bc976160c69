"""Records on disk: a journal that takes them as they finish, sealed into one immutable segment when all are there.

A folder holds any number of sealed segments and at most one journal; both are JSON lines. Reading takes them together, so that a
stage that was killed, or is redone with some other settings, finds every record it can still use. In memory is only where each record
lies, in about 25 bytes, and of that no more than CACHE.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from sharpen.errors import RunError, StorageError
from sharpen.records import SampleKey, Trajectory, Verdict
from sharpen.store.files import append, file_digest, make_folder, replacing, sync, writing

T = TypeVar("T", Trajectory, Verdict)
Place = tuple[int, int, int]  # the number of a file, where the line starts in it, how long it is: bytes
JOURNAL = "journal.jsonl"
CACHE = 8 << 20  # bytes


class _Keyed(msgspec.Struct):
    key: SampleKey


class Segments(Generic[T]):
    """The records of one type in one folder, one for each sample key: the last written, so that a better verifier can judge again.

    ``torn`` are the bytes of a last record that a kill tore, else 0: it never counted as written. Opening changes nothing on disk, so a folder
    may be read while another process writes to it.
    """

    def __init__(self, folder: Path, record: type[T]) -> None:
        self.folder = folder
        self.torn = 0
        self._record: type[T] = record
        self._decode: Callable[[bytes], T] = msgspec.json.Decoder(record).decode
        self._keyed = msgspec.json.Decoder(_Keyed).decode
        self._encode = msgspec.json.Encoder().encode
        self._journal: int | None = None
        self._written = self._synced = 0  # records since this was opened
        self._syncing: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        self._places = _Places()
        self._read()

    @property
    def records(self) -> Mapping[SampleKey, T]:
        """All of them, as they lie on disk now: segments by name, then the journal. Each is read when it is asked for."""
        return _Records(self)

    def _read(self) -> None:
        """Find out where each record lies. RunError where one cannot be read."""
        paths = sorted(self.folder.glob("*.jsonl"))  # the journal sorts after any segment, whose name is hex
        for path, number in [(path, self._open(path)) for path in paths]:
            start = 0
            with open(self._files[number], "rb", closefd=False) as file:
                for line_number, line in enumerate(file, 1):
                    if path.name == JOURNAL and not line.endswith(b"\n"):
                        self.torn = len(line)
                    elif line != b"\n":
                        try:
                            self._keep(self._decode(line).key, (number, start, len(line)))
                        except msgspec.MsgspecError as error:
                            raise RunError(f"{path}:{line_number} cannot be read ({error}); delete that line to do it again") from error
                    start += len(line)

    def _open(self, path: Path) -> int:
        self._files.append(os.open(path, os.O_RDONLY))
        return len(self._files) - 1

    # ------------------------------------------------------------ reading

    def _line(self, place: Place) -> bytes:
        number, start, size = place
        return os.pread(self._files[number], size, start)

    def _find(self, key: SampleKey) -> tuple[bytes, T] | None:
        """A record, also as it is written."""
        at = _slot(key)
        while (place := self._places.get(at)) is not None:
            line = self._line(place)
            try:
                record = self._decode(line)
            except msgspec.MsgspecError as error:
                raise RunError(f"a file in {self.folder} was changed while it was in use ({error}); give the same command again") from error
            if record.key == key:
                return line, record
            at += 1
        return None

    def _keys(self) -> Iterator[SampleKey]:
        for place in self._places:
            yield self._keyed(self._line(place)).key

    def _keep(self, key: SampleKey, place: Place) -> None:
        """The record of ``key`` lies there from now on. Another key that hashes alike has the slot before."""
        with self._lock:
            at = _slot(key)
            while not self._places.take(at, place):
                if (taken := self._places.get(at)) is not None and self._keyed(self._line(taken)).key == key:
                    self._places.put(at, place)
                    return
                at += 1

    # ------------------------------------------------------------ writing

    def mend(self) -> str:
        """Cut off what a kill tore, and say so in one line; "" where nothing is torn. Only for who holds the folder."""
        if not self.torn:
            return ""
        path = self.folder / JOURNAL
        with writing(path):
            os.truncate(path, path.stat().st_size - self.torn)
        again = "judged" if self._record is Verdict else "made"
        said = f"{path}: the last record was torn by a kill and is cut off ({self.torn} bytes); that try is {again} again"
        self.torn = 0
        return said

    def append(self, record: T) -> None:
        """On disk, synced, before this returns."""
        with writing(self.folder):
            journal, place = self._write(record)
            os.fdatasync(journal)
        self._synced = self._written
        self._keep(record.key, place)

    async def add(self, record: T) -> None:
        """On disk, synced, before this returns. Records that are added meanwhile share a sync, which blocks nobody else."""
        with writing(self.folder):
            journal, place = self._write(record)
            mine = self._written
            while self._synced < mine:
                if self._syncing is None:
                    self._syncing = asyncio.create_task(self._sync(journal))
                    self._syncing.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits any more
                await asyncio.shield(self._syncing)
        self._keep(record.key, place)

    def _write(self, record: T) -> tuple[int, Place]:
        line = self._encode(record) + b"\n"
        with self._lock:
            if self._journal is None:
                self._begin()
            assert self._journal is not None
            start = append(self._journal, line)
            self._written += 1
            return self._journal, (self._reading, start, len(line))

    def _begin(self) -> None:
        """Open the journal. What a kill tore is cut off first: the next record would join it."""
        self.mend()
        make_folder(self.folder)
        path = self.folder / JOURNAL
        self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._reading = self._open(path)
        sync(self.folder)

    async def _sync(self, journal: int) -> None:
        upto = self._written
        try:
            await asyncio.to_thread(os.fdatasync, journal)
            self._synced = upto
        finally:
            self._syncing = None

    def close(self) -> None:
        """Stop writing. What is there can still be read, and the next record opens the journal again."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def seal(self, keys: Iterable[SampleKey]) -> Path:
        """Write the records of ``keys``, sorted by key, as one immutable segment and drop everything else in the folder. One record at a time."""
        self.close()
        chosen = list(keys)
        for part in ("sampling", "environment", "model", "index", "task"):  # as ``order`` does, without a tuple for each
            chosen.sort(key=attrgetter(part))
        staged = self.folder / "sealing"
        for left in self.folder.glob(".sealing.*"):  # by a kill
            left.unlink()
        last = None
        with replacing(staged) as file:
            for key in chosen:
                if key != last:
                    if (found := self._find(key)) is None:
                        raise KeyError(key)
                    file.write(found[0].rstrip(b"\n") + b"\n")
                    last = key
        sealed = self.folder / f"{file_digest(staged)[:16]}.jsonl"
        with writing(sealed):
            staged.replace(sealed)
            sync(self.folder)
            for path in sorted(self.folder.glob("*.jsonl")):  # the journal last: it says what holds until the end
                if path != sealed:
                    path.unlink()
            sync(self.folder)
        _close(self._files)
        self._places = _Places()
        self.torn = 0
        self._read()
        return sealed


class _Records(Mapping[SampleKey, T]):
    """What ``Segments.records`` gives: read from disk at every access."""

    def __init__(self, segments: Segments[T]) -> None:
        self._segments: Segments[T] = segments

    def __getitem__(self, key: SampleKey) -> T:
        if (found := self._segments._find(key)) is None:
            raise KeyError(key)
        return found[1]

    def __iter__(self) -> Iterator[SampleKey]:
        return self._segments._keys()

    def __len__(self) -> int:
        return self._segments._places.count


class _Places:
    """Slots and the places in them, in SQLite's temporary database: what CACHE does not hold goes to a file that ends with the process."""

    def __init__(self) -> None:
        self.count = 0
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._rows.close)
        columns = "slot INTEGER PRIMARY KEY, number INTEGER, start INTEGER, size INTEGER"
        for line in ("PRAGMA journal_mode=OFF", f"PRAGMA cache_size={-CACHE >> 10}", f"CREATE TABLE places ({columns})", "BEGIN"):
            self._rows.execute(line)

    def get(self, slot: int) -> Place | None:
        found: Place | None = self._ask("SELECT number, start, size FROM places WHERE slot = ?", slot).fetchone()
        return found

    def take(self, slot: int, place: Place) -> bool:
        """False where the slot is taken."""
        taken = self._ask("INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)", slot, *place).rowcount == 1
        self.count += taken
        return taken

    def put(self, slot: int, place: Place) -> None:
        self._ask("REPLACE INTO places VALUES (?, ?, ?, ?)", slot, *place)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._ask("SELECT number, start, size FROM places ORDER BY number, start"))

    def _ask(self, what: str, *values: int) -> sqlite3.Cursor:
        try:
            return self._rows.execute(what, values)
        except sqlite3.Error as error:
            raise StorageError(
                f"no room for temporary files ({error}); set TMPDIR to a folder with more, and give the same command again"
            ) from error


def _slot(key: SampleKey) -> int:
    return hash(key) >> 1  # room to count on


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def order(key: SampleKey) -> tuple[Any, ...]:
    """The order of sample keys everywhere: training and sealing sort by it, so that order of arrival changes nothing."""
    return (key.task, key.index, key.model, key.environment, key.sampling)
