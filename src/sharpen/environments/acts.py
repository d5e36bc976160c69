"""What a policy did, act by act, and what it was told of it: read back from a finished trajectory, whoever made it.

An environment tells a policy what went wrong in words, so it is in words that it stands in a trajectory: a tool's answer that begins with ``error:``,
a game's "You can't do that now.". Everything here is a rule over these words and over the calls themselves; no model is asked. What no rule
knows (a refusal in the words of somebody else's game) counts as no trouble.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from sharpen.environments.text_game import CANNOT, NOT_UNDERSTOOD, first_line, plain
from sharpen.records import Message, Thread, ToolCall, Trajectory

Trouble = Literal["", "malformed", "refused", "tool error"]

RULES = 1  # raise it when they change: verdicts by other rules are other verdicts

ANSWER, MALFORMED, NOTHING = "(answer)", "(malformed)", "(nothing)"  # what stands in the place of a name
LONGEST_NAME = 40

# ``error: ...`` as our tools say it, ``ValueError: ...`` and tracebacks as others' do. The colon keeps "Error rates are low" a result.
_ERROR = re.compile(r"(?:(?i:error|exception)\s*:|(?:\w+\.)*[A-Z]\w*(?:Error|Exception)\s*:|Traceback \(most recent call last\))")


class Act(NamedTuple):
    """One call of a tool, one command, or an answer in plain text.

    ``turn`` counts the policy's own turns from 0, ``thread`` the conversations of the try (0 is the main one): a turn with three calls is three acts.
    ``name`` is the tool, or the command's first word; ``text`` the whole of it in one spelling.

    ``trouble`` is what it was told: ``malformed`` (nobody could read it, or there is no such tool), ``refused`` (understood, and not possible now),
    ``tool error`` (the tool was called and raised). ``repeated``: the same act was done before in this try, in the same state as far as it shows, with
    the same result. ``failed_again``: that failed before in the same state, and failed again. ``empty``: it says nothing and calls nothing.
    """

    turn: int
    thread: int
    kind: Literal["call", "command", "answer"]
    name: str
    text: str
    trouble: Trouble = ""
    repeated: bool = False
    failed_again: bool = False
    empty: bool = False


def acts(trajectory: Trajectory) -> tuple[Act, ...]:
    """Everything the policy did, in order, conversation by conversation; without the few-shot examples and the prompt's own turns.

    A turn without a call is an answer where tools are offered, and where it is the only one and no game was played; else it is a command, of which
    the first word is the verb. The state is what the policy was last told that was no error: an error changes nothing. So a refused action that is
    done again is always found, while two places that look alike are taken for one. A call counts as repeated by its arguments and its result alone.
    """
    main = Thread(messages=trajectory.messages, tools=trajectory.tools, turns=trajectory.turns)
    found: list[Act] = []
    for number, thread in enumerate((main, *trajectory.threads)):
        found += _of(thread, number, trajectory)
    return tuple(found)


def turns(trajectory: Trajectory) -> tuple[Message, ...]:
    """The policy's own assistant turns, in order: those of the main conversation, then those of the others."""
    main = Thread(messages=trajectory.messages, turns=trajectory.turns)
    parts = ((thread, _own(thread, trajectory, number)) for number, thread in enumerate((main, *trajectory.threads)))
    return tuple(thread.messages[at] for thread, own in parts for at in own)


def says_nothing(turn: Message) -> bool:
    """Whether a turn is empty: no text, no call, and nothing that was meant to be one. What a policy only thinks is not said."""
    return not turn.content.strip() and not turn.tool_calls and turn.problem is None


def _own(thread: Thread, trajectory: Trajectory, number: int) -> list[int]:
    """Where the policy's own turns are in ``thread``: the last assistant messages, as many as there are turns, or actions where no tokens are known."""
    places = [at for at, message in enumerate(thread.messages) if message.role == "assistant"]
    if thread.turns or number:
        many = len(thread.turns)
    elif trajectory.actions:
        many = len(trajectory.actions) + (trajectory.stop == "token_limit")  # the turn that was cut is no action
    else:
        many = len(places)
    return places[-many:] if many else []


def _of(thread: Thread, number: int, trajectory: Trajectory) -> list[Act]:
    own = _own(thread, trajectory, number)
    messages = thread.messages
    called = bool(thread.tools) or any(messages[at].tool_calls or messages[at].problem for at in own)
    game = not called and (len(own) > 1 or "won" in trajectory.outcome or "moves" in trajectory.outcome)
    if trajectory.stop == "token_limit" and not number:
        own = own[:-1]  # a turn that was cut was never taken as an act
    understood = trajectory.actions if game and not number and len(trajectory.actions) == len(own) else ()
    offered = {str(tool.get("function", tool).get("name")): tool.get("function", tool) for tool in thread.tools if isinstance(tool, dict)}
    memory = _Memory("\n".join(m.content for m in messages[: own[0]] if m.role != "assistant")[-2000:] if own else "")
    found: list[Act] = []
    for turn, at in enumerate(own):
        message = messages[at]
        replies = _replies(messages, at)
        empty = says_nothing(message)
        made: list[tuple[Act, str | None]] = []
        for call, reply in _answered(message.tool_calls, replies):
            made.append((_call(call, reply, turn, number, offered), reply))
        if not message.tool_calls:
            told = replies[0].content if replies else None
            if called and (message.problem is not None or (told is not None and _tells_error(told))):
                made.append((Act(turn, number, "call", MALFORMED, message.content.strip(), "malformed", empty=empty), told))
            elif game:
                typed = understood[turn] if understood else first_line(message.content)
                trouble = _refusal(told)
                if told is None and turn == len(own) - 1 and _last_refused(trajectory, found):
                    trouble = "refused"
                made.append((_command(plain(typed), trouble, turn, number, empty), told))
            else:
                made.append((Act(turn, number, "answer", ANSWER, message.content.strip(), empty=empty), told))
        found += memory.take(made)
    return found


class _Memory:
    """What was done in which state, and what came of it."""

    def __init__(self, opening: str) -> None:
        self._state = opening
        self._results: dict[tuple[str, str], set[str]] = {}
        self._failed: set[tuple[str, str, str]] = set()

    def take(self, made: Sequence[tuple[Act, str | None]]) -> Iterator[Act]:
        """The acts of one turn, marked. All of them are done in the state before it."""
        news = [reply for act, reply in made if not act.trouble and reply is not None]
        for act, reply in made:
            if act.kind == "answer":
                yield act
                continue
            state = "" if act.kind == "call" else self._state
            results = self._results.setdefault((state, act.text), set())
            known = bool(results) and (reply is None or reply in results)
            results.add(reply or "")
            failure = (self._state, act.kind, act.text)
            again = bool(act.trouble) and failure in self._failed
            if act.trouble:
                self._failed.add(failure)
            yield act._replace(repeated=known or again, failed_again=again)
        if news:
            self._state = "\n".join(news)


def _replies(messages: Sequence[Message], at: int) -> list[Message]:
    """What came between the assistant turn ``at`` and the next one."""
    end = next((place for place in range(at + 1, len(messages)) if messages[place].role == "assistant"), len(messages))
    return [message for message in messages[at + 1 : end] if message.role in ("tool", "user")]


def _answered(calls: Sequence[ToolCall], replies: Sequence[Message]) -> Iterator[tuple[ToolCall, str | None]]:
    """Each call with its result: by its id, else the oldest that nobody took. None where there is none."""
    left = [reply for reply in replies if reply.role == "tool"]
    ids = {call.id for call in calls if call.id}
    for call in calls:
        mine = next((one for one in left if call.id and one.tool_call_id == call.id), None)
        mine = mine or next((one for one in left if one.tool_call_id not in ids), None)
        if mine is not None:
            left.remove(mine)
        yield call, None if mine is None else mine.content


def _call(call: ToolCall, reply: str | None, turn: int, thread: int, offered: dict[str, Any]) -> Act:
    given, readable = _arguments(call)
    text = f"{call.name}({given})"
    name = _name(call.name)
    if offered and call.name not in offered:
        return Act(turn, thread, "call", MALFORMED, text, "malformed")
    if not readable:
        return Act(turn, thread, "call", name, text, "malformed")
    if reply is None or not _went_wrong(reply):
        return Act(turn, thread, "call", name, text)
    fits = _fits(json.loads(call.arguments), offered.get(call.name))
    return Act(turn, thread, "call", name, text, "tool error" if fits else "malformed")


def _arguments(call: ToolCall) -> tuple[str, bool]:
    """The arguments in one spelling, and whether they are an object at all."""
    try:
        value = json.loads(call.arguments)
        return json.dumps(value, sort_keys=True), isinstance(value, dict)
    except (ValueError, RecursionError):
        return call.arguments, False


def _fits(arguments: dict[str, Any], tool: dict[str, Any] | None) -> bool:
    """Whether the call has the arguments that the tool's schema asks for, and no others. True where there is no schema to go by."""
    schema = tool.get("parameters") if tool else None
    if not isinstance(schema, dict) or not isinstance(known := schema.get("properties"), dict):
        return True
    required = schema.get("required")
    missing = [name for name in required if name not in arguments] if isinstance(required, list) else []
    return not missing and all(name in known for name in arguments)


def _went_wrong(reply: str) -> bool:
    """Whether a tool's answer tells of an error: ``error: ...``, ``ValueError: ...``, a traceback, or JSON with a top-level ``error`` or ``isError``."""
    if _tells_error(reply):
        return True
    if not reply.lstrip().startswith("{"):
        return False
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error") or value.get("isError") or value.get("is_error"))


def _tells_error(reply: str) -> bool:
    return _ERROR.match(reply.lstrip()[:200]) is not None


def _command(text: str, trouble: Trouble, turn: int, thread: int, empty: bool) -> Act:
    name = MALFORMED if trouble == "malformed" and not empty else _name(text.split(" ", 1)[0])
    return Act(turn, thread, "command", name, text, trouble, empty=empty)


def _name(text: str) -> str:
    return text[:LONGEST_NAME].encode("utf-8", "replace").decode() or NOTHING


def _refusal(told: str | None) -> Trouble:
    if told is None:
        return ""
    if told.startswith(CANNOT):
        return "refused"
    return "malformed" if told.startswith(NOT_UNDERSTOOD) else ""


def _last_refused(trajectory: Trajectory, before: Sequence[Act]) -> bool:
    """Whether a game's last action, whose answer nobody saw, came to nothing: then it is missing among the moves."""
    moves = trajectory.outcome.get("moves")
    if not isinstance(moves, int) or trajectory.threads or not trajectory.actions:
        return False
    return len(trajectory.actions) - moves > sum(bool(act.trouble) for act in before)
