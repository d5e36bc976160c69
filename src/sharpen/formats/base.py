"""What all formats share: reading lines, text, tool calls and conversations without guessing, and counting what is not taken.

A format is one file with one ``FORMAT``: ``units`` finds the pieces of a file (a line, a row, a sample), ``parse`` makes a ``Draft`` of one,
``write`` does the way back. ``load.py`` puts them together. A piece that cannot be taken as it is raises ``Fault``; it is never repaired.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sharpen.errors import FormatError, nearest
from sharpen.records import Choice, Cost, Maker, Message, Record, SampleKey, Stop, ToolCall, Trajectory, TurnTokens

MAX_BYTES = 64 * 2**20  # of one line or one sample: 9,000 times a usual trajectory
ENVIRONMENT = "imported"
RECORDED = "recorded"  # stands for sampling settings in the key of a trajectory that nobody sampled

# Reasons are counted, so they are the same for every row; what differs goes into the detail.
TOO_LONG = "too long"
NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
TWICE = "a key given twice"
NO_MESSAGES = "no messages"
NO_CONTENT = "a message without content"
NOT_TEXT = "content that is not text"
BAD_FIELD = "a field of the wrong type"
UNKNOWN_ROLE = "an unknown role"
BROKEN_CALL = "a broken tool call"
BROKEN_TOOLS = "broken tool schemas"
ORPHAN = "an orphan tool result"
UNANSWERED = "missing turns: a tool call without its result"
NO_OPENING = "missing turns: nothing before the first assistant turn"
NO_ASSISTANT = "no assistant turn"
NOT_MADE = "an assistant turn that the model did not make, and no token ids to leave it untrained"
MIXED = "another format than the rest of the file"

Note = Callable[[str], None]
Write = Callable[[Iterable[Trajectory], Path], int]


class Fault(ValueError):
    """A piece of a file cannot be taken. ``reason`` is counted; ``detail`` is this piece's own."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Imported(Record, frozen=True, kw_only=True):
    """What became of a file. ``pieces = kept + sum(left_out.values())``.

    ``left_out`` counts pieces by reason and ``examples`` gives the first of each with its place; ``lost`` counts what was in the pieces
    that were kept and has no place in a ``Trajectory``.
    """

    path: str
    format: str
    pieces: int
    kept: int
    left_out: dict[str, int]
    examples: dict[str, str]
    lost: dict[str, int]


class Exported(Record, frozen=True, kw_only=True):
    """What was written, and what the format has no place for (see ``docs/formats.md``). ``banners`` are in the file ``warning`` beside it, and ``terms`` is
    the file beside it with the terms that ride on it, "" where none do."""

    path: str
    format: str
    written: int
    loses: tuple[str, ...]
    banners: tuple[str, ...] = ()
    warning: str = ""
    terms: str = ""


class Draft(Record, frozen=True, kw_only=True):
    """One piece of a file as ``parse`` understood it. ``task`` None: named by its opening messages; ``index`` None: counted for each task.

    ``key`` is there only where sharpen wrote the file itself and the format could carry it.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    turns: tuple[TurnTokens, ...] = ()
    actions: tuple[str, ...] = ()
    agent: str | None = None
    task: str | None = None
    index: int | None = None
    key: SampleKey | None = None
    stop: Stop = "done"
    outcome: dict[str, Any] = {}
    cost: Cost = Cost()
    error: str | None = None
    choice: Choice | None = None
    maker: Maker | None = None
    hint: str | None = None


class Rest(Record, frozen=True, kw_only=True):
    """What of a trajectory no format has a field for. It travels where a format allows data of one's own, under the name ``sharpen``."""

    key: SampleKey
    agent: str
    actions: tuple[str, ...] = ()
    stop: Stop
    outcome: dict[str, Any] = {}
    cost: Cost = Cost()
    error: str | None = None
    choice: Choice | None = None
    maker: Maker | None = None
    hint: str | None = None


OURS = "sharpen"


def rest_of(trajectory: Trajectory) -> dict[str, Rest]:
    return {OURS: Rest(**{name: getattr(trajectory, name) for name in Rest.__struct_fields__})}


def with_rest(draft: Draft, holder: Any) -> Draft:
    """``draft`` with what ``holder`` kept of it, where sharpen wrote the file."""
    if not isinstance(holder, dict) or OURS not in holder:
        return draft
    try:
        rest = msgspec.convert(holder[OURS], Rest)
    except msgspec.ValidationError as error:
        raise Fault(BAD_FIELD, f"{OURS}: {error}") from None
    return msgspec.structs.replace(draft, **msgspec.structs.asdict(rest))


@dataclass(frozen=True)
class Format:
    """One format. ``write`` is None where it is only read.

    ``suffixes`` are those of the files that are read, ``writes`` of those written; ``recognise`` says whether a first piece is of this
    format. ``loses`` names what does not come back when a trajectory is written and read again.
    """

    name: str
    suffixes: tuple[str, ...]
    units: Callable[[Path, int], Iterator[tuple[str, Any]]]
    parse: Callable[[Any, Note], Draft]
    recognise: Callable[[Any], bool]
    write: Write | None = None
    writes: tuple[str, ...] = (".jsonl",)
    loses: tuple[str, ...] = ()


# ---------------------------------------------------------------- files


def lines(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | Fault]]:
    """Each line that is not blank with its place, ``file:line``. Holds one line at a time and never more than ``max_bytes`` of it."""
    with opened(path) as file:
        number = 0
        while line := file.readline(max_bytes + 2):
            number += 1
            where = f"{path}:{number}"
            if number == 1:
                line = text_start(line, path)
            if len(line.rstrip(b"\r\n")) > max_bytes:
                yield (
                    where,
                    Fault(TOO_LONG, f"the line is longer than {max_bytes:,} bytes; raise max_bytes (--max-bytes) if it is meant to be"),
                )
                while not line.endswith(b"\n") and (line := file.readline(2**20)):
                    pass
            elif line.strip():
                yield where, line


def opened(path: Path) -> Any:
    """``path`` for reading bytes; FormatError in one line where that cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None


def text_start(start: bytes, path: Path) -> bytes:
    """The start of a text file without its UTF-8 mark. FormatError where it is plainly no UTF-8 text."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FormatError(f"{path}:1 is UTF-16, not UTF-8; convert it first: iconv -f UTF-16 -t UTF-8")
    if b"\x00" in start[:4096]:
        raise FormatError(f"{path}:1 is binary, not JSON lines; name its format if it is one of the binary ones")
    return start.removeprefix(b"\xef\xbb\xbf")


def decoded(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each JSON line's value, or its Fault."""
    for where, line in lines(path, max_bytes):
        if isinstance(line, Fault):
            yield where, line
            continue
        try:
            value = decode(line)
            if (key := key_given_twice(line, value)) is not None:
                raise Fault(TWICE, f"{key!r}; delete one")
        except Fault as fault:
            yield where, fault
        else:
            yield where, value


def decode(data: bytes | str) -> Any:
    """JSON, with the NaN and Infinity that Python's own writer leaves in scores."""
    try:
        return msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise Fault(NOT_UTF8, f"byte {error.start}") from None
    except RecursionError:
        raise Fault(NOT_JSON, "nested too deeply") from None
    except msgspec.MsgspecError as error:
        try:
            value = json.loads(data)
            msgspec.json.encode(value)
        except RecursionError:
            raise Fault(NOT_JSON, "nested too deeply") from None
        except UnicodeEncodeError:
            raise Fault(NOT_UTF8, "half a surrogate pair") from None
        except ValueError:
            raise Fault(NOT_JSON, str(error)) from None
        return value


_END_OF_KEY = re.compile(rb'"(?<![^\\]\\")\s*:')  # in strings it is found too often, behind a key always


def key_given_twice(data: bytes, value: Any) -> str | None:
    """A key that stands twice in one object of the JSON text ``data``, which decodes to ``value``: decoders keep the last one without a word.

    Where the text holds no more ends of keys than ``value`` has keys, there is none: a microsecond or two for a row.
    """
    kept, inside = 0, [value]
    while inside:
        one = inside.pop()
        if type(one) is dict:
            kept += len(one)
            inside += one.values()
        elif type(one) is list:
            inside += one
    if len(_END_OF_KEY.findall(data)) <= kept:
        return None
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) < len(pairs):
            twice.append(next(key for at, (key, _) in enumerate(pairs) if key in {before for before, _ in pairs[:at]}))

    with contextlib.suppress(RecursionError, ValueError):
        json.loads(data, object_pairs_hook=once)
    return twice[0] if twice else None


# ---------------------------------------------------------------- parts of a conversation


def mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Fault(BAD_FIELD, f"{what} is {kind(value)}, not an object")
    return value


def listing(value: Any, what: str) -> list[Any]:
    """A list; null and absence are an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Fault(BAD_FIELD, f"{what} is {kind(value)}, not a list")
    return value


def string(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Fault(BAD_FIELD, f"{what} is {kind(value)}, not a string")
    return value


def whole(value: Any) -> int:
    """A count; what is no whole number counts as 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def number(value: Any) -> float:
    """A measure that is not below 0; what is none counts as 0."""
    try:
        return max(0.0, float(value)) if isinstance(value, int | float) and value == value else 0.0
    except OverflowError:
        return 0.0


def kind(value: Any) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "true or false"}.get(
        type(value).__name__, "a number"
    )


def text(content: Any, what: str, between: str = "") -> str | None:
    """The text of a message's content: a string, or parts that are all text, joined by ``between``; None for null."""
    if content is None or isinstance(content, str):
        return content
    parts = []
    for part in listing(content, f"the content of {what}"):
        value = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(value, str):
            found = part.get("type") if isinstance(part, dict) else kind(part)
            raise Fault(NOT_TEXT, f"{what} holds {found!r}; a trajectory is text")
        parts.append(value)
    return between.join(parts)


def token_ids(value: Any, what: str) -> tuple[int, ...] | None:
    """Token ids, or None for null."""
    if value is None:
        return None
    ids = tuple(listing(value, what))
    if not all(type(token) is int and token >= 0 for token in ids):
        raise Fault(BAD_FIELD, f"{what} are not all whole numbers from 0")
    return ids


def arguments(value: Any, name: str, note: Note, *, padded: bool = False, declared: Mapping[str, Any] | None = None) -> str:
    """The arguments of a call of ``name`` as a JSON string: a string as it stands, an object written out.

    Where Arrow held the object (``padded``) it gave every call the keys of every other, with nulls: these are taken out again. A null in
    JSON is the model's own, except for a key that the tool's schema (``declared``, its properties) does not know.
    """
    if value is None or value == "":
        note("tool arguments left empty, read as {}")
        return "{}"
    if isinstance(value, str):
        try:
            parsed = decode(value)
        except Fault as fault:
            raise Fault(BROKEN_CALL, f"the arguments of {name!r} are {fault}") from None
        if not isinstance(parsed, dict):
            raise Fault(BROKEN_CALL, f"the arguments of {name!r} are {kind(parsed)}, not an object")
        return value
    if not isinstance(value, dict):
        raise Fault(BROKEN_CALL, f"the arguments of {name!r} are {kind(value)}, not an object")
    kept = without_nulls(value) if padded else value
    if declared is not None:
        kept = {key: inner for key, inner in kept.items() if inner is not None or key in declared}
    if kept != value:
        note("nulls that Arrow had put into tool arguments, taken out")
    try:
        return json.dumps(kept, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise Fault(BROKEN_CALL, f"the arguments of {name!r} are no JSON: {error}") from None


def without_nulls(value: Any) -> Any:
    """``value`` with every null-valued key of every object gone; nulls in lists stay."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def called(raw: Any, note: Note, *, padded: bool = False, declared: Mapping[str, Mapping[str, Any]] | None = None) -> ToolCall:
    """A call as ``{id, function: {name, arguments}}`` or flat ``{id, name, arguments}``."""
    if not isinstance(raw, dict):
        raise Fault(BROKEN_CALL, f"it is {kind(raw)}, not an object")
    function = raw.get("function", raw)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Fault(BROKEN_CALL, "it has no name")
    known = (declared or {}).get(name)
    given = arguments(function.get("arguments"), name, note, padded=padded, declared=known)
    return ToolCall(id=string(raw.get("id"), f"the id of the call of {name!r}") or "", name=name, arguments=given)


def tool_schemas(value: Any, *, padded: bool = False) -> tuple[dict[str, Any], ...]:
    """Tool schemas, from a list or a JSON string of one, each as ``{type: function, function: {...}}``."""
    if isinstance(value, str):
        try:
            value = decode(value) if value.strip() else None
        except Fault as fault:
            raise Fault(BROKEN_TOOLS, str(fault)) from None
    if value is not None and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        raise Fault(BROKEN_TOOLS, "they are not a list of objects")
    tools = [without_nulls(tool) if padded else tool for tool in value or ()]
    return tuple(tool if "name" not in tool or "function" in tool else {"type": "function", "function": tool} for tool in tools)


def properties(tools: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each tool's schema says its arguments are; tools without such a schema are left out."""
    found = {}
    for tool in tools:
        function = tool.get("function")
        parameters = function.get("parameters") if isinstance(function, dict) else None
        known = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str) and isinstance(known, dict):
            found[function["name"]] = known
    return found


def check(messages: tuple[Message, ...], stop: Stop) -> None:
    """Fault where turns are missing: no opening, no assistant turn (unless it broke before one), calls without results or the reverse.

    Only the last assistant turn's calls may be open. A result without an id answers the oldest open call; where there is one, the calls of
    its turn are not counted against the results (terminals answer several calls at once).
    """
    if not messages:
        raise Fault(NO_MESSAGES)
    if messages[0].role in ("assistant", "tool"):
        raise Fault(ORPHAN if messages[0].role == "tool" else NO_OPENING)
    if stop not in ("error", "cancelled") and all(message.role != "assistant" for message in messages):
        raise Fault(NO_ASSISTANT)
    waiting: list[str] = []
    loose = False
    for place, message in enumerate(messages, 1):
        if message.role == "tool":
            answered = message.tool_call_id or ""
            if answered in waiting:
                waiting.remove(answered)
            elif waiting and (not answered or "" in waiting):
                waiting.remove("" if answered else waiting[0])
            else:
                raise Fault(ORPHAN, f"message {place} answers {answered!r}" if answered else f"message {place} answers no call")
            loose = loose or not answered
        else:
            if waiting and not loose:
                raise Fault(UNANSWERED, f"before message {place}")
            waiting, loose = [call.id for call in message.tool_calls], False
            if len({name for name in waiting if name}) < sum(map(bool, waiting)):
                raise Fault(BROKEN_CALL, f"message {place} gives two calls one id")


# ---------------------------------------------------------------- writing


def given(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as an object. Fault where they are none."""
    value = msgspec.json.decode(arguments(call.arguments, call.name, lambda _: None))
    return dict(value)


def write_lines(path: Path, rows: Iterable[Any]) -> int:
    """One JSON value a line, whole or not at all. The number of lines."""
    from sharpen.store.files import replacing

    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
            count += 1
    return count


def unwritable(trajectory: Trajectory, why: object) -> FormatError:
    """The one line for a trajectory that does not fit a format."""
    key = trajectory.key
    return FormatError(
        f"trajectory {key.task!r} {key.index} of {key.model!r} cannot be written: {why}; leave it out or choose another format"
    )


def one_of(name: str, formats: Mapping[str, Format]) -> Format:
    if name not in formats:
        raise FormatError(f"unknown format {name!r}{nearest(name, formats)}")
    return formats[name]
