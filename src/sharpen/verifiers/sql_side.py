"""SQLite, in a process that can be killed, with what a query may do cut down to selecting."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

LONGEST = 1_000_000  # bytes of a value or a query, so that none is made that fills the memory
HEAP = 256 * 2**20  # bytes that SQLite may hold
EVERY = 1000  # steps between two looks at their number
DENIED = ("load_extension", "random", "randomblob", "zeroblob", "readfile", "writefile", "edit", "fts3_tokenizer", "sqlite_log")
MAY = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, getattr(sqlite3, "SQLITE_RECURSIVE", 33))


class TooMuch(Exception):
    """A query went over the limit on rows or steps."""


def wrong(reference: str, answer: str, places: list[list[str]], named: bool, max_rows: int, max_steps: int) -> str:
    """What the query ``answer`` does otherwise than ``reference`` on one of ``places`` (a file's path, or a script), "" where nothing.

    ValueError where the reference cannot be run, or gives no row anywhere: then any query without rows would be right.
    """
    order, some, differs = ordered(reference), False, ""
    for path, script in places:
        database = _open(path, script)
        try:
            try:
                names, right = _run(database, reference, max_rows, max_steps)
            except (sqlite3.Error, sqlite3.Warning, TooMuch, ValueError) as error:
                raise ValueError(f"the reference's query cannot be run: {error}") from None
            some = some or bool(right)
            if differs:
                continue
            try:
                said_names, said = _run(database, answer, max_rows, max_steps)
            except (sqlite3.Error, sqlite3.Warning, TooMuch, ValueError, MemoryError) as error:
                differs = ascii(str(error) or "out of memory")[1:-1]
                continue
        finally:
            database.close()
        if named and names != said_names:
            differs = "other columns"
        elif len(said) != len(right):
            differs = f"{len(said)} rows, not {len(right)}"
        elif Counter(said) != Counter(right):
            differs = "other rows"
        elif order and said != right:
            differs = "the rows in another order"
    if not some:
        raise ValueError("the reference's query gives no row on any database, so any query without rows would be right; add rows")
    return differs


def ordered(query: str) -> bool:
    """Whether the outermost query has an ORDER BY."""
    bare = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", " ", query, flags=re.DOTALL)
    depth, outer = 0, []
    for character in bare:
        depth += {"(": 1, ")": -1}.get(character, 0)
        outer.append(character if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(outer), re.IGNORECASE) is not None


def _open(path: str, script: str) -> sqlite3.Connection:
    try:
        if path:
            database = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)
        else:
            database = sqlite3.connect(":memory:")
            database.executescript(script)
    except sqlite3.Error as error:
        raise ValueError(f"the database cannot be opened: {error}") from None
    database.execute(f"PRAGMA hard_heap_limit = {HEAP}")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST)
    database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    database.set_authorizer(_may)
    return database


def _may(action: int, one: str | None, two: str | None, *_: Any) -> int:
    if action not in MAY or (action == sqlite3.SQLITE_FUNCTION and (two or "").lower() in DENIED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _run(database: sqlite3.Connection, query: str, max_rows: int, max_steps: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns, in lower case, and the rows."""
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return int(looks * EVERY > max_steps)

    database.set_progress_handler(look, EVERY)
    try:
        cursor = database.execute(query)
        rows = cursor.fetchmany(max_rows + 1)
    except sqlite3.OperationalError as error:
        if str(error) == "interrupted":
            raise TooMuch(f"more than {max_steps:,} steps") from None
        raise
    finally:
        database.set_progress_handler(None, 0)
    if cursor.description is None:
        raise ValueError("no query that gives rows")
    if len(rows) > max_rows:
        raise TooMuch(f"more than {max_rows:,} rows")
    return [column[0].lower() for column in cursor.description], [tuple(map(_plain, row)) for row in rows]


def _plain(value: Any) -> Any:
    """A value as it is compared: floats to 12 digits, since sums in another order differ in the last ones."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    return value
