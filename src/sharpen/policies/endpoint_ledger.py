"""The batches of one endpoint on disk, so that a restart finds what is paid for. Files of a batch, each written whole or not at all:

- ``NAME.requests.jsonl``, as it is sent, before anything is;
- ``NAME.sending.json``, before it is sent to a provider that puts no name on it: the latest batch there until then;
- ``NAME.batch.json``, once the provider has taken it: its id there;
- ``NAME.answers.jsonl``, once it has ended: the lines of its output file and its error file, as they came. Empty where there were none.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sharpen.errors import RunError
from sharpen.records import Record
from sharpen.store.files import read_json, write_atomic, write_json
from sharpen.store.run import Run


class Submitted(Record, frozen=True, kw_only=True):
    """``NAME.batch.json``: the ``batch``'s id at the server ``url``."""

    batch: str
    url: str


class Sending(Record, frozen=True, kw_only=True):
    """``NAME.sending.json``: the id of the latest batch at the provider before this one, "" where there was none."""

    after: str


class _Line(msgspec.Struct):
    custom_id: str


@dataclass(eq=False)
class Entry:
    """One batch: its ``name`` here, its requests' ids in the order of its file, and its id at the provider, "" until that is known.

    ``fresh`` as long as it has surely not been submitted.
    """

    name: str
    ids: tuple[str, ...]
    batch: str = ""
    fresh: bool = False


class Ledger:
    """The batches in ``folder``, which it holds: RunError where another process does, or a file cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._lock = Run.hold(folder)
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._answers: dict[str, list[tuple[Path, int, int]]] = {}
        self._number = 0
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        for path in sorted(self.folder.glob("*.requests.jsonl")):
            name = path.name.removesuffix(".requests.jsonl")
            self._number = max(self._number, int(name.partition("-")[0]))
            if (answers := self._path(name, "answers.jsonl")).exists():
                self._remember(answers)
                continue
            submitted = self._path(name, "batch.json")
            try:
                batch = read_json(submitted, Submitted).batch if submitted.exists() else ""
            except msgspec.MsgspecError as error:
                raise RunError(f"{submitted} cannot be read ({error}); delete it, and the batch is looked for at the provider") from error
            self._add(Entry(name, tuple(id for _, _, id in _lines(path)), batch))

    def entry_of(self, id: str) -> Entry | None:
        """The batch without answers yet that the request is in."""
        return self._entries.get(id)

    def answers(self, id: str) -> Iterator[bytes]:
        """The lines that answer the request, in the order that they came."""
        for path, start, length in self._answers.get(id, ()):
            with path.open("rb") as file:
                file.seek(start)
                yield file.read(length)

    def has(self, batch: str) -> bool:
        """Whether the provider's ``batch`` is one of those without answers yet."""
        return any(entry.batch == batch for entry in self._entries.values())

    def requests(self, entry: Entry) -> Path:
        """The file of its requests."""
        return self._path(entry.name, "requests.jsonl")

    def plan(self, lines: Mapping[str, bytes]) -> Entry:
        """A new batch of request lines by id, on disk before this returns."""
        self._number += 1
        entry = Entry(f"{self._number:04}-{secrets.token_hex(4)}", tuple(lines), fresh=True)
        write_atomic(self.requests(entry), b"".join(line + b"\n" for line in lines.values()))
        self._add(entry)
        return entry

    def sending(self, entry: Entry, after: str) -> None:
        """It is about to be submitted, ``after`` being the latest batch at the provider."""
        write_json(self._path(entry.name, "sending.json"), Sending(after=after))

    def sent_after(self, entry: Entry) -> str | None:
        """The latest batch at the provider before this one was submitted; None where it surely was not."""
        path = self._path(entry.name, "sending.json")
        return read_json(path, Sending).after if path.exists() else None

    def submitted(self, entry: Entry, batch: str, url: str) -> None:
        """The provider has taken it as ``batch``."""
        write_json(self._path(entry.name, "batch.json"), Submitted(batch=batch, url=url))
        entry.batch = batch

    def drop(self, entry: Entry) -> None:
        """Forget a batch that nobody has taken."""
        self.requests(entry).unlink(missing_ok=True)
        self._path(entry.name, "sending.json").unlink(missing_ok=True)
        self._forget(entry)

    def finish(self, entry: Entry, answers: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
        """The files that the provider gave for the batch are all there will be. Gives their lines with their ids, "" where a line has none."""
        path = self._path(entry.name, "answers.jsonl")
        write_atomic(path, b"\n".join(answers))
        self._remember(path)
        self._forget(entry)
        return ((id, line) for _, line, id in _lines(path))

    def close(self) -> None:
        self._lock.close()

    def _add(self, entry: Entry) -> None:
        self._entries |= dict.fromkeys(entry.ids, entry)

    def _forget(self, entry: Entry) -> None:
        for id in entry.ids:
            if self._entries.get(id) is entry:
                del self._entries[id]

    def _remember(self, path: Path) -> None:
        for start, line, id in _lines(path):
            self._answers.setdefault(id, []).append((path, start, len(line)))

    def _path(self, name: str, end: str) -> Path:
        return self.folder / f"{name}.{end}"


def _lines(path: Path) -> Iterator[tuple[int, bytes, str]]:
    """Where each line starts, the line, and its ``custom_id``."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield start, line, id_of(line)
            start += len(line)


def id_of(line: bytes) -> str:
    """A line's ``custom_id``, "" where it has none that can be read."""
    try:
        return msgspec.json.decode(line, type=_Line).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
