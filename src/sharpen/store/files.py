"""Writing so that a kill, a full disk or a second reader never meets half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
from msgspec import inspect

from sharpen.errors import RunError, StorageError

T = TypeVar("T")


def digest(value: Any) -> str:
    """16 hex digits that name a value: sha256 of its JSON with sorted keys. Equal values on any machine get equal names."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one line. What was written before stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"no space left for {path}; free some and give the same command again: what is finished is kept") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(f"cannot write {path}: {error.strerror}; choose another folder with --runs") from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in pieces that takes the place of ``path`` when all of it is there, or not at all."""
    with writing(path):
        make_folder(path.parent)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: beside, synced, then renamed over."""
    with replacing(path) as file:
        file.write(data)


def sync(path: Path) -> None:
    """Make what a file holds, or which names a folder holds, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Make everything in ``folder`` survive a power cut, whoever wrote it."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def append(handle: int, data: bytes) -> int:
    """Write ``data`` at the end of an open file, all of it or nothing: a full disk leaves half a line otherwise. Returns where it starts."""
    start = os.lseek(handle, 0, os.SEEK_END)
    try:
        written = os.write(handle, data)
        while written < len(data):
            written += os.write(handle, data[written:])
    except OSError:
        os.ftruncate(handle, start)
        raise
    return start


def as_json(value: Any) -> bytes:
    """A record as JSON that a person can read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_json(path: Path, value: Any) -> None:
    """``as_json`` in a file."""
    write_atomic(path, as_json(value))


def read_if_there(path: Path, record: type[T]) -> T | None:
    """``read_json``, or None where there is no such file. RunError, one line, where it cannot be read."""
    if not path.exists():
        return None
    try:
        return read_json(path, record)
    except msgspec.MsgspecError as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and give the command that made it again") from error


def read_json(path: Path, record: type[T]) -> T:
    """A record that ``write_json`` or ``write_blob`` wrote. OSError or msgspec's errors where it cannot be read.

    JSON has no NaN: an undefined number was written as null, and where the record's type is a float it is NaN again.
    """
    raw = path.read_bytes()
    try:
        return msgspec.json.decode(raw, type=record)
    except msgspec.ValidationError:  # few records hold such a number, and looking at every value of a large one takes long
        return msgspec.convert(_undefined(msgspec.json.decode(raw), inspect.type_info(record)), record, str_keys=True)


def _undefined(data: Any, kind: inspect.Type) -> Any:
    match kind:
        case inspect.FloatType() if data is None:
            return math.nan
        case inspect.StructType() if isinstance(data, dict):
            types = {field.encode_name: field.type for field in kind.fields}
            return {name: _undefined(value, types[name]) if name in types else value for name, value in data.items()}
        case inspect.DictType() if isinstance(data, dict):
            return {name: _undefined(value, kind.value_type) for name, value in data.items()}
        case inspect.VarTupleType() if isinstance(data, list):
            return [_undefined(item, kind.item_type) for item in data]
        case inspect.UnionType() if data is not None:
            others = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
            return _undefined(data, others[0]) if len(others) == 1 else data
    return data


def write_blob(path: Path, value: Any) -> None:
    """A large record as compact JSON."""
    write_atomic(path, msgspec.json.encode(value))
