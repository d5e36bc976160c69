"""Queries, by running the answer's and the reference's on real SQLite databases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Record, Task, Trajectory, Verdict
from sharpen.store.files import file_digest
from sharpen.verifiers.base import Properties, Seconds, name_of, says, shown
from sharpen.verifiers.function import answer_of
from sharpen.verifiers.part import Reading, read
from sharpen.verifiers.workers import pool

FIELDS = ("query", "databases", "scripts")


class Sql(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="sql"):
    """The answer's query gives the rows of the reference's on every database.

    The reference is a query, or ``{query, databases, scripts}``: paths of SQLite files, and SQL texts that build one each in memory; where it names
    neither, those of the settings (``scripts`` are files there) are used. Several databases with other rows defeat coincidences. Rows count as a
    multiset, in order only where the reference's outermost query has an ORDER BY (ties in it then count too: order by enough). Columns count by
    position, and by name with ``columns: named``; 1 is 1.0, floats are compared to 12 digits, '1' is not 1.

    Databases are open for reading only; a query may select and nothing else: no ATTACH, no PRAGMA, no writes, no random(). Over ``max_rows`` rows
    or ``max_steps`` steps of SQLite's machine, the same on every computer, the answer fails; over ``timeout_s`` it is an error.
    """

    part: Literal["whole", "last_line", "boxed", "code"] = "code"
    databases: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    columns: Literal["by_position", "named"] = "by_position"
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    max_steps: Annotated[int, msgspec.Meta(ge=1000)] = 50_000_000
    timeout_s: Seconds = 30.0


class Wanted(Record, frozen=True, kw_only=True):
    """What a task asks for: the right query and the databases that it is run on."""

    query: str
    databases: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()


class SqlVerifier:
    """See ``Sql``. SettingsError where a file of the settings cannot be read."""

    properties = Properties(
        needs="reference: a query, or {query, databases, scripts}",
        cost="cpu",
        gameable="by a query that is right on these rows by coincidence, such as a constant: give several databases",
        fails="other rows; not one SELECT; SQLite refuses it; too many rows or steps",
        errors="the reference's query fails, or gives no row on any database; not settled within `timeout_s`",
    )

    def __init__(self, settings: Sql) -> None:
        try:
            self._scripts = tuple(Path(path).read_text() for path in settings.scripts)
            content = [*self._scripts, *(file_digest(Path(path)) for path in settings.databases)]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"verifier sql: a file of databases or scripts cannot be read: {error}") from None
        self.name, self.exact, self._settings = name_of(settings, *content), settings.exact, settings

    def problem(self, task: Task) -> str:
        try:
            self._wanted(task)
        except SettingsError as error:
            return str(error)
        return ""

    def _wanted(self, task: Task) -> Wanted:
        given = task.reference
        if given is None:
            raise SettingsError("has no reference, but sql needs the right query; write it there")
        try:
            wanted = Wanted(query=given) if isinstance(given, str) else msgspec.convert(given, Wanted)
        except msgspec.ValidationError as error:
            raise SettingsError(
                f"has the reference {shown(given)}, but sql needs a query, or {', '.join(FIELDS)} ({error}); write it so"
            ) from None
        if not wanted.query.strip():
            raise SettingsError("has an empty query for a reference; write the right one")
        if not wanted.databases and not wanted.scripts:
            wanted = Wanted(query=wanted.query, databases=self._settings.databases, scripts=self._scripts)
        if not wanted.databases and not wanted.scripts:
            raise SettingsError("names no database; give databases or scripts in the reference, or in the settings of verifier sql")
        for path in wanted.databases:
            if not Path(path).is_file():
                raise SettingsError(f"names the database {path!r}, which is no file here; put it there")
        return wanted

    def cheats(self, task: Task) -> dict[str, str]:
        return {
            "a constant": "SELECT -98765",
            "no rows": "SELECT 1 WHERE 0",
            "two statements": "SELECT -98765; SELECT 1",
            "the schema itself": "SELECT * FROM sqlite_master",
        }

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        wanted = self._wanted(task)
        said, missing = read(self._settings, answer_of(trajectory))
        if missing:
            return says(self.name, trajectory, False, missing)
        settings = self._settings
        places: list[Any] = [*([path, ""] for path in wanted.databases), *(["", script] for script in wanted.scripts)]
        limits = [settings.columns == "named", settings.max_rows, settings.max_steps]
        wrong = pool().call("sharpen.verifiers.sql_side:wrong", wanted.query, said, places, *limits, timeout_s=settings.timeout_s)
        return says(self.name, trajectory, not wrong, wrong)
