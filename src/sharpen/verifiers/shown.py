"""What a verifier that reads a trajectory is shown of it, quoted so that nothing in it can pass for what its reader was told."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sharpen.chat.base import said
from sharpen.records import Message, Record, Task, Trajectory

# What begins the name of a control token in the tokenizers that are about. A local engine's template holds all of its own tokenizer's names apart
# (chat/names.py); what a server's tokenizer makes of text is out of reach here, so a backslash goes into the names that it may know.
_NAMES = re.compile(
    r"<(?=[|\uff5c]|/?(?:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|EOT|BOS_TOKEN|EOS_TOKEN|start_of_turn|end_of_turn|end_of_utterance|unused\d+|extra_id_\d+)>)"
    r"|<(?=/?(?:role|think|tool_call|tool_response|reserved_\d+|SPECIAL_\d+)>|seed:|[a-z_]{1,32}\|>)|\[(?=\||e~\[)|\](?=~!?b[\[\]])"
    r"|\[(?=(?:/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK)|gMASK|MASK|CLS|SEP|PAD|UNK|BOS|EOS)\])"
)
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# what Unicode has nothing drawn for, though it counts as letters and marks; the last variation selector (U+FE0F) is in every other emoji
_IGNORED = {
    0x34F,
    0x115F,
    0x1160,
    0x17B4,
    0x17B5,
    0x180B,
    0x180C,
    0x180D,
    0x180F,
    0x3164,
    0xFFA0,
    *range(0xFE00, 0xFE0F),
    *range(0xE0000, 0xE1000),
}


class Quoted(Record, frozen=True, kw_only=True):
    """A quoted block. ``left_out`` characters of the ``length`` that there were are not in it."""

    text: str
    length: int
    left_out: int


def parts(task: Task, trajectory: Trajectory) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What was asked, and what was done then: the trajectory from its first own turn on. Few-shot examples before the task are in neither."""
    messages = trajectory.messages
    spoken = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if task.prompt and messages[: len(task.prompt)] == task.prompt:
        first = len(task.prompt)  # which may itself hold turns of an assistant
    elif trajectory.turns and len(trajectory.turns) <= len(spoken):
        first = spoken[-len(trajectory.turns)]
    else:
        first = spoken[0] if spoken else len(messages)
    lead = 1 if messages and messages[0].role == "system" else 0
    last_shot = max((at + 1 for at in spoken if at < first), default=lead)
    opening = (*messages[:lead], *messages[max(lead, last_shot) : first])
    return task.prompt or opening, messages[first:]


def quoted(title: str, pieces: Sequence[tuple[str, str]], code: str, most: int) -> Quoted:
    """``pieces`` (who says it, what) between a line BEGIN and a line END that carry ``code``; every line of theirs begins with ``| ``.

    Of more than ``most`` characters the middle is left out, and a line says how much: what was asked stands at the start, how it ended at the end.
    """
    length = sum(len(text) + 1 for _, text in pieces)  # with its line break: a million empty messages are long, too
    left_out = max(0, length - most)
    cut = most // 2 if left_out else length
    lines, at, told = [f"BEGIN {title} {code}"], 0, not left_out
    for who, text in pieces:
        text += "\n"
        head, tail = text[: max(0, cut - at)], text[max(0, cut + left_out - at) :]
        at += len(text)
        if head or tail:
            lines.append(f"{who}:")
        if head:
            lines += _quoted(head)
        if not told and at > cut:
            told = True
            lines.append(f"... {left_out} of {length} characters are left out here ...")
        if tail:
            lines += _quoted(tail)
    return Quoted(text="\n".join([*lines, f"END {title} {code}"]), length=length, left_out=left_out)


def spoken(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Messages as pieces: text and calls. What a policy thought is not shown: it is judged by what it said and did."""
    return [(message.role, said(message)) for message in messages]


def said_anything(pieces: Sequence[tuple[str, str]]) -> bool:
    """Whether the policy said or did anything in ``pieces``. Where it did not, it has failed, and nobody need be asked."""
    return any(text.strip() for who, text in pieces if who in ("assistant", "answer"))


def written(value: Any) -> str:
    """A reference as text: as it is, or as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def code_of(*texts: str) -> str:
    """24 hex digits that none of ``texts`` can hold: to hold them, it would have to hold a digest of itself. The same for the same texts."""
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()[:24]


def visible(text: str) -> str:
    """``text`` with nothing in it that acts unseen: control and format characters (bidi, zero width, tags) as escapes, names of control tokens broken."""
    return without_names(text.replace("\r\n", "\n").replace("\r", "\n").translate(_ESCAPES))


def without_names(text: str) -> str:
    """``text`` with a backslash in the names of control tokens that are about, for a server that would make tokens of them."""
    return _NAMES.sub(lambda found: f"{found[0]}\\", text)


def _quoted(text: str) -> Iterator[str]:
    return (f"| {line}" for line in visible(text.removesuffix("\n")).split("\n"))


class _Escapes(dict[int, str]):
    """For ``str.translate``: filled as characters are met."""

    def __missing__(self, code: int) -> str:
        import unicodedata

        char = chr(code)
        hidden = char not in "\n\t" and (unicodedata.category(char) in _UNSEEN or code in _IGNORED)
        self[code] = (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}") if hidden else char
        return self[code]


_ESCAPES = _Escapes()
