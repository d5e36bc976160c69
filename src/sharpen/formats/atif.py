"""ATIF, the Agent Trajectory Interchange Format (1.4 to 1.8): one JSON document a file, or one a line.

The only format here that carries everything: what ATIF has no field for goes into its ``extra``, as the specification allows. Read,
embedded sub-agent trajectories become trajectories of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sharpen.formats.base import (
    BAD_FIELD,
    NO_MESSAGES,
    NOT_MADE,
    TOO_LONG,
    UNKNOWN_ROLE,
    Draft,
    Fault,
    Format,
    Note,
    called,
    check,
    decode,
    given,
    lines,
    listing,
    mapping,
    opened,
    properties,
    rest_of,
    string,
    text,
    token_ids,
    tool_schemas,
    unwritable,
    whole,
    with_rest,
    write_lines,
)
from sharpen.records import Cost, Message, Trajectory, TurnTokens

VERSION = "ATIF-v1.8"
ROLES: dict[Any, Any] = {"system": "system", "user": "user", "agent": "assistant"}
MISSING_STEPS = "missing turns: the steps are not numbered from 1 on"
LOSES = ("spelling of tool arguments (spacing, number notation)",)


def units(path: Path, max_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each document with its place: ``file:line`` where a document is one line, else ``file:1``; an embedded one has its number behind it."""
    for where, data in _documents(path, max_bytes):
        try:
            raw = data if isinstance(data, Fault) else decode(data)
        except Fault as fault:
            raw = fault
        yield from _with_embedded(where, raw)


def _documents(path: Path, max_bytes: int) -> Iterator[tuple[str, bytes | Fault]]:
    if path.suffix == ".jsonl":
        yield from lines(path, max_bytes)
        return
    with opened(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        yield (
            f"{path}:1",
            Fault(TOO_LONG, f"the document is longer than {max_bytes:,} bytes; raise max_bytes (--max-bytes) if it is meant to be"),
        )
    elif data.strip():
        yield f"{path}:1", data


def _with_embedded(where: str, raw: Any) -> Iterator[tuple[str, Any]]:
    yield where, raw
    inner = raw.get("subagent_trajectories") if isinstance(raw, dict) else None
    for place, one in enumerate(inner if isinstance(inner, list) else (), 1):
        yield from _with_embedded(f"{where} subagent {place}", one)


def recognise(raw: Any) -> bool:
    return isinstance(raw, dict) and str(raw.get("schema_version")).startswith("ATIF")


def parse(raw: Any, note: Note) -> Draft:
    document = mapping(raw, "the document")
    if not recognise(document):
        raise Fault(BAD_FIELD, f"schema_version is {document.get('schema_version')!r}, not ATIF's")
    agent = mapping(document.get("agent"), "agent")
    name = string(agent.get("name"), "agent.name")
    if not name:
        raise Fault(BAD_FIELD, "agent has no name")
    if document.get("continued_trajectory_ref"):
        note("the reference to the trajectory that goes on from here")
    tools = tool_schemas(agent.get("tool_definitions"))
    messages: list[Message] = []
    turns: list[TurnTokens | None] = []
    unmade = ""
    for place, one in enumerate(listing(document.get("steps"), "steps"), 1):
        step = mapping(one, f"step {place}")
        if step.get("step_id") != place:
            raise Fault(MISSING_STEPS, f"step {place} says {step.get('step_id')!r}")
        messages += _messages(step, place, note, properties(tools))
        if step.get("source") == "agent":
            if step.get("is_copied_context") or step.get("llm_call_count") == 0:
                unmade = unmade or f"step {place}"
            else:
                turns.append(_turn(step, place, note))
    if not messages:
        raise Fault(NO_MESSAGES)
    if unmade and not all(turn and turn.prompt is not None and turn.output is not None for turn in turns):
        raise Fault(NOT_MADE, unmade)
    extra = document.get("extra")
    totals = {key: value for key, value in mapping(document.get("final_metrics") or {}, "final_metrics").items() if value is not None}
    kept = {"extra": extra, "final_metrics": totals, "notes": document.get("notes")}
    draft = Draft(
        messages=tuple(messages),
        tools=tools,
        turns=tuple(turn or TurnTokens() for turn in turns) if any(turns) else (),
        agent=string(agent.get("model_name"), "agent.model_name") or name,
        outcome={key: value for key, value in kept.items() if value},
        cost=Cost(
            prompt_tokens=whole(totals.get("total_prompt_tokens")),
            sampled_tokens=whole(totals.get("total_completion_tokens")),
            turns=len(turns),
        ),
    )
    return with_rest(draft, extra)


def _messages(step: dict[str, Any], place: int, note: Note, declared: dict[str, dict[str, Any]]) -> list[Message]:
    """The step's own message and its observations."""
    what = f"step {place}"
    role = ROLES.get(step["source"]) if isinstance(step.get("source"), str) else None
    if role is None:
        raise Fault(UNKNOWN_ROLE, f"{what} has {step.get('source')!r}")
    calls = []
    for call in listing(step.get("tool_calls"), "tool_calls"):
        renamed = (
            {"id": call.get("tool_call_id"), "name": call.get("function_name"), "arguments": call.get("arguments")}
            if isinstance(call, dict)
            else call
        )
        calls.append(called(renamed, note, declared=declared))
    said = text(step.get("message"), what, "\n")
    if said is None:
        raise Fault(BAD_FIELD, f"the message of {what} is null")
    own = Message(
        role=role,
        content=said,
        reasoning=string(step.get("reasoning_content"), "reasoning_content"),
        tool_calls=tuple(calls),
        name=_name(step),
    )
    observation = mapping(step.get("observation") or {}, f"the observation of {what}")
    made = [own] if own.content or own.role == "assistant" or not observation else []
    for result in listing(observation.get("results"), "results"):
        result = mapping(result, f"a result of {what}")
        if result.get("subagent_trajectory_ref"):
            note("references from results to sub-agents")
        content = text(result.get("content"), f"a result of {what}", "\n") or ""
        answered = string(result.get("source_call_id"), "source_call_id")
        if calls or answered is not None:
            made.append(Message(role="tool", content=content, tool_call_id=answered, name=_name(result)))
        else:
            note("observations that answer no call, read as user turns")
            made.append(Message(role="user", content=content))
    return made


def _name(holder: dict[str, Any]) -> str | None:
    extra = holder.get("extra")
    return string(extra.get("name"), "extra.name") if isinstance(extra, dict) else None


def _turn(step: dict[str, Any], place: int, note: Note) -> TurnTokens | None:
    """The tokens of an agent's step; None where it has no metrics."""
    metrics = step.get("metrics")
    if metrics is None:
        return None
    metrics = mapping(metrics, f"the metrics of step {place}")
    if metrics.get("logprobs"):
        note("logprobs")
    prompt, output = (
        token_ids(metrics.get("prompt_token_ids"), "prompt_token_ids"),
        token_ids(metrics.get("completion_token_ids"), "completion_token_ids"),
    )
    if whole(step.get("llm_call_count")) > 1 and (prompt or output):
        note("token ids of steps that hold several model calls")
        prompt = output = None
    extra = metrics.get("extra")
    stop = (extra.get("stop") or extra.get("finish_reason")) if isinstance(extra, dict) else None
    return TurnTokens(prompt=prompt, output=output, stop="length" if stop == "length" else "stop")


def document(trajectory: Trajectory) -> dict[str, Any]:
    """``trajectory`` as an ATIF document. Assistant messages before the first of ``turns`` (examples in a prompt) are copied context."""
    try:
        check(trajectory.messages, trajectory.stop)
        spoken = sum(message.role == "assistant" for message in trajectory.messages)
        copied = spoken - len(trajectory.turns) if trajectory.turns else 0
        if copied < 0:
            raise Fault(BAD_FIELD, f"it has {len(trajectory.turns)} turns, but {spoken} assistant messages")
        steps: list[dict[str, Any]] = []
        seen = 0
        for message in trajectory.messages:
            if message.role == "tool":
                _observe(steps[-1], message)
                continue
            step: dict[str, Any] = {"step_id": len(steps) + 1, "source": message.role, "message": message.content}
            if message.name is not None:
                step["extra"] = {"name": message.name}
            if message.role == "assistant":
                step["source"] = "agent"
                if message.reasoning is not None:
                    step["reasoning_content"] = message.reasoning
                if message.tool_calls:
                    step["tool_calls"] = [
                        {"tool_call_id": call.id, "function_name": call.name, "arguments": given(call)} for call in message.tool_calls
                    ]
                if seen < copied:
                    step["is_copied_context"] = True
                elif trajectory.turns:
                    step["metrics"] = _metrics(trajectory.turns[seen - copied])
                seen += 1
            steps.append(step)
    except Fault as fault:
        raise unwritable(trajectory, fault) from None
    agent: dict[str, Any] = {"name": trajectory.agent or "unknown", "version": "unknown", "model_name": trajectory.key.model}
    if trajectory.tools:
        agent["tool_definitions"] = trajectory.tools
    cost = trajectory.cost
    totals = {"total_prompt_tokens": cost.prompt_tokens, "total_completion_tokens": cost.sampled_tokens, "total_steps": len(steps)}
    return {"schema_version": VERSION, "agent": agent, "steps": steps, "final_metrics": totals, "extra": rest_of(trajectory)}


def _observe(step: dict[str, Any], message: Message) -> None:
    answered = message.tool_call_id
    if answered is not None and answered not in {call["tool_call_id"] for call in step["tool_calls"]}:
        raise Fault(BAD_FIELD, f"a result answers {answered!r}, but the calls before it have no ids")
    result: dict[str, Any] = {"content": message.content}
    if answered is not None:
        result["source_call_id"] = answered
    if message.name is not None:
        result["extra"] = {"name": message.name}
    step.setdefault("observation", {"results": []})["results"].append(result)


def _metrics(turn: TurnTokens) -> dict[str, Any]:
    made: dict[str, Any] = {"extra": {"stop": turn.stop}}
    for name, ids in (("prompt", turn.prompt), ("completion", turn.output)):
        if ids is not None:
            made |= {f"{name}_tokens": len(ids), f"{name}_token_ids": ids}
    return made


def write(trajectories: Iterable[Trajectory], path: Path) -> int:
    """One document a line."""
    return write_lines(path, map(document, trajectories))


FORMAT = Format(
    name="atif",
    suffixes=(".json", ".jsonl"),
    units=units,
    parse=parse,
    recognise=recognise,
    write=write,
    loses=LOSES,
)
