"""The ``traces.jsonl`` of verifiers (0.4): one episode a line, each agent's trace in it one trajectory.

A trace is a graph of messages. ``turns`` are all sampled turns of its trainable branches, each once, with the ids that the model saw;
``messages`` are those of the last trainable branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharpen.formats.base import (
    BAD_FIELD,
    BROKEN_TOOLS,
    NO_MESSAGES,
    NOT_MADE,
    Draft,
    Fault,
    Format,
    Note,
    decoded,
    listing,
    mapping,
    number,
    string,
    text,
    token_ids,
    tool_schemas,
    whole,
)
from sharpen.formats.rows import message
from sharpen.records import Cost, Message, Stop, TurnTokens

BROKEN_GRAPH = "missing turns: a node whose parent is not before it"
UNEVEN = "token ids and mask of different lengths"
STREAMS = ("logprobs", "advantages", "reference_logprobs", "trainer_logprobs", "entropies", "loss_weights")
TOOL_FIELDS = ("name", "description", "parameters", "strict")
# What ended a trace, where it was not the agent itself. A deadline on the agent is a limit it ran into; on anything else, infrastructure.
STOPS: dict[str, Stop] = {
    "max_turns": "turn_limit",
    "max_output_tokens": "token_limit",
    "max_input_tokens": "overflow",
    "max_total_tokens": "overflow",
    "compaction_failed": "overflow",
    "agent_timeout": "turn_limit",
    "rollout_timeout": "turn_limit",
}


def units(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each trace as ``(episode, trace)``: ``file:line``, with the trace's number behind it where the episode has several."""
    for where, raw in decoded(path, max_bytes):
        traces = raw.get("traces") if isinstance(raw, dict) else None
        if not isinstance(traces, list) or not traces:
            yield where, raw if isinstance(raw, Fault) else (raw, None)
            continue
        for place, trace in enumerate(traces, 1):
            yield where if len(traces) == 1 else f"{where} trace {place}", (raw, trace)


def recognise(raw: Any) -> bool:
    return isinstance(raw, tuple) and isinstance(raw[0], dict) and "traces" in raw[0]


def parse(raw: Any, note: Note) -> Draft:
    episode, trace = mapping(raw[0], "the episode"), raw[1]
    if trace is None:
        raise Fault(NO_MESSAGES, "the episode has no traces")
    trace = mapping(trace, "the trace")
    nodes = [mapping(node, "a node") for node in listing(trace.get("nodes"), "nodes")]
    calls = [mapping(call, "a model call") for call in listing(trace.get("calls"), "calls")]
    by_node = {call["node"]: call for call in calls if isinstance(call.get("node"), int)}
    branches = _branches(nodes)
    if not branches:
        raise Fault(NO_MESSAGES)
    last = branches[-1]
    turns = [
        _turn(nodes, at, by_node.get(at, {}), note)
        for at in sorted({at for branch in branches for at in branch})
        if nodes[at].get("sampled") is True
    ]
    exact = all(turn.prompt is not None for turn in turns)
    spoken = [_message(nodes[at], place, note) for place, at in enumerate(last, 1)]
    if not exact:
        if any(one.role == "assistant" and nodes[at].get("sampled") is not True for one, at in zip(spoken, last, strict=True)):
            raise Fault(NOT_MADE)
        turns = [_turn(nodes, at, by_node.get(at, {}), note) for at in last if nodes[at].get("sampled") is True]
        if len(branches) > 1:
            note("messages of branches before the last, without token ids")
    info = mapping(trace.get("agent") or {}, "agent")
    task = mapping(trace.get("task") or episode.get("task") or {}, "task")
    usage = [mapping(call.get("usage") or {}, "usage") for call in calls]
    errors = [mapping(error, "an error") for error in listing(trace.get("errors"), "errors")]
    stop = _stop(trace, by_node.get(last[-1], {}))
    config = mapping(info.get("config") or {}, "agent.config")
    return Draft(
        messages=tuple(spoken),
        tools=_tools(nodes[last[0]].get("tools") or trace.get("tools")),
        turns=tuple(turns),
        agent=string(config.get("model"), "model")
        or string(calls[-1].get("model") if calls else None, "model")
        or string(info.get("name"), "name"),
        task=string(task.get("key"), "task.key") or string(task.get("hash"), "task.hash"),
        stop=stop,
        outcome=_outcome(episode, trace, info),
        cost=Cost(
            prompt_tokens=sum(whole(one.get("prompt_tokens")) + whole(one.get("cached_input_tokens")) for one in usage),
            sampled_tokens=sum(whole(one.get("completion_tokens")) for one in usage),
            seconds=_seconds(trace.get("timing")),
            turns=len(turns),
        ),
        error=str(errors[-1].get("message")) if stop == "error" and errors else None,
    )


def _branches(nodes: list[dict[str, Any]]) -> list[list[int]]:
    """Root-to-leaf paths in the order of their leaves, without compaction attempts that nothing went on from."""
    parents = [node.get("parent") for node in nodes]
    for at, parent in enumerate(parents):
        if parent is not None and not (type(parent) is int and 0 <= parent < at):
            raise Fault(BROKEN_GRAPH, f"node {at} names {parent!r}")
    links = [[mapping(link, "a link") for link in listing(node.get("semantic_parents"), "semantic_parents")] for node in nodes]
    resumed = [link.get("node") for one in links for link in one if link.get("type") == "compaction"]
    found = []
    for leaf in sorted(set(range(len(nodes))) - {parent for parent in parents if parent is not None}):
        if any(link.get("type") == "compaction_attempt" for link in links[leaf]) and leaf not in resumed:
            continue
        found.append(_path(nodes, leaf))
    return found


def _path(nodes: list[dict[str, Any]], at: int | None) -> list[int]:
    path: list[int] = []
    while at is not None:
        path.append(at)
        at = nodes[at].get("parent")
    return path[::-1]


def _turn(nodes: list[dict[str, Any]], at: int, call: dict[str, Any], note: Note) -> TurnTokens:
    """A sampled node's turn: the path's ids up to what was sampled, and what was. Without ids where any node on the path has none."""
    stop: Any = "length" if call.get("finish_reason") == "length" else "stop"
    for stream in STREAMS:
        if nodes[at].get(stream):
            note(stream)
    ids: list[int] = []
    for one in _path(nodes, at):
        own = token_ids(nodes[one].get("token_ids"), "token_ids") or ()
        if not own:
            return TurnTokens(stop=stop)
        ids += own
    mask = listing(nodes[at].get("mask"), "mask")
    if len(mask) != len(own):
        raise Fault(UNEVEN, f"node {at} has {len(own)} and {len(mask)}")
    sampled = sum(flag is True for flag in mask)
    if not sampled or not all(flag is True for flag in mask[-sampled:]):
        raise Fault(BAD_FIELD, f"the mask of node {at} is not one stretch at the end")
    return TurnTokens(prompt=tuple(ids[:-sampled]), output=tuple(ids[-sampled:]), stop=stop)


def _message(node: dict[str, Any], place: int, note: Note) -> Message:
    raw = mapping(node.get("message"), f"message {place}")
    if raw.get("provider_state"):
        note("provider_state")
    plain = {name: value for name, value in raw.items() if name != "provider_state"}
    if raw.get("role") == "assistant" and raw.get("content") is None:
        plain["content"] = ""  # verifiers leaves nulls out, and a turn may be all reasoning
    return message({**plain, "content": text(plain.get("content"), f"message {place}", "\n")}, place, note)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """verifiers has them flat: ``{type, name, description, parameters}``."""
    made = []
    for tool in listing(value, "tools"):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise Fault(BROKEN_TOOLS, "a tool has no name")
        made.append({"type": "function", "function": {name: tool[name] for name in TOOL_FIELDS if tool.get(name) is not None}})
    return tool_schemas(made)


def _stop(trace: dict[str, Any], last_call: dict[str, Any]) -> Stop:
    condition = string(trace.get("stop_condition"), "stop_condition") or ""
    if condition in STOPS:
        return STOPS[condition]
    if condition == "error" or condition.endswith(("_error", "_timeout")):
        return "error"
    return "token_limit" if last_call.get("finish_reason") == "length" else "done"


def _outcome(episode: dict[str, Any], trace: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """What verifiers says of the trace. Rewards are numbers as recorded, no verdicts."""
    kept = {name: trace.get(name) for name in ("id", "rewards", "metrics", "info", "stop_condition", "ok", "is_timeout", "errors")}
    group = episode.get("group")
    kept |= {"episode": episode.get("id"), "env": (episode.get("env") or None), "group": group, "agent": info.get("name")}
    if info.get("trainable") is False:
        kept["trainable"] = False
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}


def _seconds(timing: Any) -> float:
    span = timing.get("agent") if isinstance(timing, dict) else None
    return max(0.0, number(span.get("end")) - number(span.get("start"))) if isinstance(span, dict) else 0.0


FORMAT = Format(
    name="verifiers",
    suffixes=(".jsonl",),
    units=units,
    parse=parse,
    recognise=recognise,
)
