"""Training rows from trajectories: which tokens are learnt. What is trained on is what was sampled.

Where token ids were sampled they are taken unchanged. Where only text exists, turns are rendered and encoded as they would have been sampled,
and a turn whose tokens do not decode to its text is dropped with its reason, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from msgspec.structs import replace

from sharpen.chat.base import Template
from sharpen.chat.names import unmarked
from sharpen.errors import ModelError
from sharpen.records import Message, Row, Stop, Thread, Trajectory, TurnTokens

# Reasons are counted, so they are the same for every row.
OVER_LENGTH = "over max_length"
NOTHING = "no assistant tokens to train on"
REWRITTEN = "mask not proved: the template rewrites an assistant turn"
UNENDED = "mask not proved: the template ends no assistant turn"
UNSAMPLED = "mask not proved: some assistant messages were not sampled, and there are no token ids to tell which"
UNRENDERED = "mask not proved: the template cannot render the conversation"


class Unproved(Exception):
    """Which tokens of a rendered turn the model would have sampled cannot be shown. The message is the reason."""


def rows(trajectory: Trajectory, template: Template, source: str, max_length: int) -> tuple[list[Row], str | None]:
    """The rows of ``trajectory``, or none and why it was dropped.

    Labels lie on assistant output only, the end-of-turn token included where it was sampled. A turn whose prompt extends the previous prompt
    plus output continues the row, any other (compaction, dropped reasoning) starts a new one. ``max_length`` is in tokens: a trajectory with
    a longer row is dropped whole. Threads give rows of their own, after the main conversation's.
    """
    parts: tuple[Trajectory | Thread, ...] = (trajectory, *trajectory.threads)
    sampled = bool(trajectory.turns) and all(t.prompt is not None and t.output is not None for part in parts for t in part.turns)
    try:
        spoken = [part.turns if sampled else _rendered(part, trajectory.stop, template) for part in parts]
    except Unproved as error:
        return [], str(error)
    except ModelError:
        return [], UNRENDERED
    joined = [(ids, labels) for turns in spoken for ids, labels in _join(turns) if any(label != -100 for label in labels[1:])]
    if not joined:
        return [], NOTHING
    if any(len(ids) > max_length for ids, _ in joined):
        return [], OVER_LENGTH
    origin: Any = "sampled" if sampled else "rendered"
    return [
        Row(input_ids=tuple(ids), labels=tuple(labels), key=trajectory.key, source=source, origin=origin, maker=trajectory.maker)
        for ids, labels in joined
    ], None


def own_ids(trajectory: Trajectory, template: Template) -> bool:
    """Whether the sampled turns' ids read as their messages. Those of an import may be another tokenizer's: trained as they stand, they would be noise."""
    parts: tuple[Trajectory | Thread, ...] = (trajectory, *trajectory.threads)
    for part in parts:
        answers = [message for message in part.messages if message.role == "assistant"][-len(part.turns) :] if part.turns else []
        for turn, message in zip(part.turns, answers, strict=False):
            text = None if turn.output is None else template.answer(turn.output)
            # Sampled text is stripped, and parsed into calls and reasoning, but nothing is added to it.
            if text is not None and not (message.content.strip() in text and all(call.name in text for call in message.tool_calls)):
                return False
    return True


def without_ids(trajectory: Trajectory) -> Trajectory:
    """The trajectory as text alone."""
    return replace(trajectory, turns=(), threads=tuple(replace(thread, turns=()) for thread in trajectory.threads))


def pieces(row: Row, template: Template) -> tuple[tuple[str, bool], ...]:
    """The text of ``row`` in runs, each with whether it is trained."""
    tokens = zip(row.input_ids, row.labels, strict=True)
    runs = groupby(tokens, key=lambda token: token[1] != -100)
    return tuple((template.decode([token for token, _ in run]), trained) for trained, run in runs)


def _join(turns: Sequence[TurnTokens]) -> Iterator[tuple[list[int], list[int]]]:
    """``(ids, labels)`` of each run of turns that continue each other."""
    ids: list[int] = []
    labels: list[int] = []
    for turn in turns:
        prompt, output = list(turn.prompt or ()), list(turn.output or ())
        if prompt[: len(ids)] != ids:
            yield ids, labels
            ids, labels = [], []
        new = prompt[len(ids) :]
        ids = [*ids, *new, *output]
        labels = [*labels, *[-100] * len(new), *output]
    yield ids, labels


def _rendered(part: Trajectory | Thread, stop: Stop, template: Template) -> list[TurnTokens]:
    """The turns of a text-only conversation as an engine would have seen them: the prompt encoded apart from the output."""
    messages, turns = part.messages, list[TurnTokens]()
    places = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if part.turns and len(part.turns) != len(places):
        raise Unproved(UNSAMPLED)
    for number, at in enumerate(places):
        prompt = template.prompt(messages[:at], turns, part.tools)
        output = _output(messages[: at + 1], part.tools, template)
        # A turn that ran into its token limit has no end of turn.
        if part.turns[number].stop == "length" if part.turns else stop == "token_limit" and number == len(places) - 1:
            output.pop()
        turns.append(TurnTokens(prompt=tuple(prompt), output=tuple(output)))
    return turns


def _output(messages: Sequence[Message], tools: Sequence[dict[str, Any]], template: Template) -> list[int]:
    """Ids of the last message as an assistant turn, its end-of-turn token included, proved to decode to the message. Unproved otherwise."""
    before = template.render(messages[:-1], tools)
    after = template.render(messages, tools, answered=True)
    if not after.startswith(before):
        raise Unproved(REWRITTEN)
    ids = template.encode(after[len(before) :])
    end = next((at for at, token in enumerate(ids) if token in template.end_ids), None)
    if end is None:
        raise Unproved(UNENDED)
    ids = ids[: end + 1]
    text, message = template.answer(ids), messages[-1]
    # Decoded apart, ids may read otherwise than encoded together (leading spaces, byte fallback): the whole must give the rendering again.
    if not unmarked(after).startswith(unmarked(before) + template.decode(ids)) or not _says(text, message):
        raise Unproved(REWRITTEN)
    return ids


def _says(text: str, message: Message) -> bool:
    """Whether ``text`` is the message: equal where it is plain; else, since templates write calls and reasoning as they like, all of it in there."""
    if not message.tool_calls and message.reasoning is None:
        return text == message.content
    said = [message.content, message.reasoning or ""]
    for call in message.tool_calls:
        said += [call.name, *_leaves(json.loads(call.arguments))]
    return all(part in text or json.dumps(part)[1:-1] in text for part in said)


def _leaves(value: Any) -> Iterator[str]:
    """Every key and every value in JSON data, as it would be printed."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)
