"""Records on disk: a journal that takes them as they finish, sealed into one immutable segment when all are there.

A folder holds any number of sealed segments and at most one journal; both are JSON lines. Reading takes them together, so that a
stage that was killed, or is redone with some other settings, finds every record it can still use. In memory is only where each record
lies, in about 35 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import msgspec

from sharpen.errors import RunError
from sharpen.records import SampleKey, Trajectory, Verdict
from sharpen.store.files import append, file_digest, make_folder, replacing, sync, writing

T = TypeVar("T", Trajectory, Verdict)
Place = tuple[int, int, int]  # the number of a file, where the line starts in it, how long it is: bytes
Waiting = tuple[SampleKey, bytes, asyncio.Future[None]]  # a record's key and line, and who waits until it is on disk
JOURNAL = "journal.jsonl"
AT_ONCE = 256  # records that are encoded, and synced, at once where all of them are there
TOGETHER_S = 0.05  # one sync in so many seconds while more is coming: it costs the processor what encoding a hundred records does
D = TypeVar("D")


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
        self._disk = threading.Lock()  # around writing, which takes long
        self._lock = threading.Lock()  # around what is in memory
        self.coming = _Coming()
        self._waiting: list[Waiting] = []
        self._draining = False
        self._writer: ThreadPoolExecutor | None = None
        self._hurry = threading.Event()
        self._begun = float("-inf")  # when the last group was
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        self._index = _Index()
        self._read()

    @property
    def records(self) -> Mapping[SampleKey, T]:
        """All of them, as they lie on disk now, in the order in which their keys came: segments by name, then the journal. Each is read when it is
        asked for."""
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
                            self._keep([self._decode(line).key], [(number, start, len(line))])
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
        with self._lock:
            if not (rows := self._index.rows(_hash(key))):
                return None
            places = [self._index[row] for row in rows]
        for place in places:
            line = self._line(place)
            try:
                record = self._decode(line)
            except msgspec.MsgspecError as error:
                raise RunError(f"a file in {self.folder} was changed while it was in use ({error}); give the same command again") from error
            if record.key == key:
                return line, record
        return None

    def _keys(self) -> Iterator[SampleKey]:
        row = 0
        while row < len(self._index):
            with self._lock:
                place = self._index[row]
            yield self._keyed(self._line(place)).key
            row += 1

    def _keep(self, keys: Sequence[SampleKey], places: Sequence[Place]) -> None:
        """The records of ``keys`` lie there from now on."""
        with self._lock:
            for key, place in zip(keys, places, strict=True):
                self._index.put(_hash(key), place, partial(self._is, key))

    def _is(self, key: SampleKey, row: int) -> bool:
        return self._keyed(self._line(self._index[row])).key == key

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
        self.extend([record])

    def extend(self, records: Iterable[T]) -> None:
        """All of them on disk, synced ``AT_ONCE`` together, before this returns."""
        left = iter(records)
        while group := list(islice(left, AT_ONCE)):
            self._keep([record.key for record in group], self._write([self._encode(record) for record in group]))

    async def add(self, record: T) -> None:
        """On disk, synced, before this returns. A thread writes and syncs what is added meanwhile together: the loop goes on.

        While more is ``coming`` a group is begun at most every ``TOGETHER_S``; one that nothing could join any more is begun at once.
        """
        done = asyncio.get_running_loop().create_future()
        line = self._encode(record)
        with self._lock:
            self._waiting.append((record.key, line, done))
            if not self._draining:
                self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="store")
                self._writer.submit(self._drain)
                self._draining = True
            elif not self.coming.count:
                self._hurry.set()
        await done

    def _drain(self) -> None:
        """Write what waits, and what comes meanwhile, one group after the other."""
        while group := self._next_group():
            keys, lines, waiting = zip(*group, strict=True)
            failed: Exception | None = None
            try:
                self._keep(keys, self._write(lines))
            except Exception as error:  # carried to those who wait
                failed = error
            for loop, these in groupby(waiting, asyncio.Future.get_loop):
                with contextlib.suppress(RuntimeError):  # a loop that has ended: nobody waits
                    loop.call_soon_threadsafe(self._tell, list(these), failed)

    @staticmethod
    def _tell(waiting: list[asyncio.Future[None]], failed: Exception | None) -> None:
        for done in waiting:
            if done.done():  # cancelled
                continue
            if failed is None:
                done.set_result(None)
            else:
                done.set_exception(failed)

    def _next_group(self) -> list[Waiting]:
        if self._waiting and self.coming.count:
            self._hurry.wait(max(0.0, self._begun + TOGETHER_S - time.monotonic()))
        with self._lock:
            group, self._waiting = self._waiting, []
            self._draining = bool(group)
            self._hurry.clear()
        self._begun = time.monotonic() if group else self._begun
        return group

    def _write(self, lines: Sequence[bytes]) -> list[Place]:
        """All of them or none, one line each at the journal's end, and synced."""
        with self._disk, writing(self.folder):
            if self._journal is None:
                self._begin()
            assert self._journal is not None
            start, number = append(self._journal, b"\n".join((*lines, b""))), self._reading
            os.fdatasync(self._journal)
        sizes = [len(line) + 1 for line in lines]
        return [(number, at, size) for at, size in zip(accumulate(sizes, initial=start), sizes, strict=False)]

    def _begin(self) -> None:
        """Open the journal. What a kill tore is cut off first: the next record would join it."""
        self.mend()
        make_folder(self.folder)
        path = self.folder / JOURNAL
        self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._reading = self._open(path)
        sync(self.folder)

    def close(self) -> None:
        """Stop writing. What is there can still be read, and the next record opens the journal again."""
        with self._lock:
            writer, self._writer = self._writer, None
            self._hurry.set()
        if writer is not None:
            writer.shutdown()  # after it wrote also what nobody waits for any more
        with self._disk:
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
        self._index = _Index()
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

    @overload
    def get(self, key: SampleKey) -> T | None: ...
    @overload
    def get(self, key: SampleKey, default: T | D) -> T | D: ...
    def get(self, key: SampleKey, default: Any = None) -> Any:
        """As a mapping's own, which would raise and catch KeyError for each try that is not made yet."""
        found = self._segments._find(key)
        return default if found is None else found[1]

    def __iter__(self) -> Iterator[SampleKey]:
        return self._segments._keys()

    def __len__(self) -> int:
        return len(self._segments._index)


class _Coming:
    """``with`` it a record is made that will be added: others that are added meanwhile may wait for it a little, to be synced together."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self.count -= 1


class _Index:
    """Rows in the order in which their keys came, each with the place of a record, and a table that finds them by the hash of its key.

    Arrays in place of a dict, whose entries take five times the memory; probing is linear.
    """

    def __init__(self) -> None:
        self._hashes, self._numbers, self._starts, self._sizes = array("I"), array("I"), array("Q"), array("Q")
        self._table = array("I", bytes(256))  # a row + 1; 0 is free

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, row: int) -> Place:
        return self._numbers[row], self._starts[row], self._sizes[row]

    def rows(self, hashed: int) -> list[int]:
        """All whose key hashes so."""
        found, table, last = [], self._table, len(self._table) - 1
        at = hashed & last
        while entry := table[at]:
            if self._hashes[entry - 1] == hashed:
                found.append(entry - 1)
            at = (at + 1) & last
        return found

    def put(self, hashed: int, place: Place, same: Callable[[int], bool]) -> None:
        """In the row of those whose key hashes so that is the ``same``, else in a new one."""
        table, last = self._table, len(self._table) - 1
        at = hashed & last
        while entry := table[at]:
            if self._hashes[entry - 1] == hashed and same(entry - 1):
                self._numbers[entry - 1], self._starts[entry - 1], self._sizes[entry - 1] = place
                return
            at = (at + 1) & last
        number, start, size = place
        self._hashes.append(hashed)
        self._numbers.append(number)
        self._starts.append(start)
        self._sizes.append(size)
        table[at] = len(self._hashes)
        if 3 * len(self._hashes) >= 2 * len(table):
            self._grow()

    def _grow(self) -> None:
        table = self._table = array("I", bytes(2 * self._table.itemsize * len(self._table)))
        last = len(table) - 1
        for entry, hashed in enumerate(self._hashes, 1):
            at = hashed & last
            while table[at]:
                at = (at + 1) & last
            table[at] = entry


def _hash(key: SampleKey) -> int:
    return hash(key) & 0xFFFFFFFF


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def order(key: SampleKey) -> tuple[Any, ...]:
    """The order of sample keys everywhere: training and sealing sort by it, so that order of arrival changes nothing."""
    return (key.task, key.index, key.model, key.environment, key.sampling)
