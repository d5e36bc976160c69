"""Formats in and out: files of the real packages, round trips that lose what they say and nothing else, and hostile files."""

from __future__ import annotations

import json
import re
import string
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpen.errors import FormatError
from sharpen.formats import base
from sharpen.formats.load import FORMATS, detect, read, write
from sharpen.records import Cost, Maker, Message, SampleKey, Terms, ToolCall, Trajectory, TurnTokens

DATA = Path(__file__).parent / "data" / "formats"
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {}}}}}
ASKED = [{"role": "user", "content": "1 + 2?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "3"}]


def calling(arguments: Any, **more: Any) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call], **more},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


# ---------------------------------------------------------------- files that the real packages wrote


@pytest.mark.parametrize("name", ["inspect.eval", "inspect_chunked.eval"])
def test_an_inspect_log(name: str) -> None:
    assert detect(DATA / name) == "inspect"
    first, second = read(DATA / name)
    assert (first.key.task, first.key.index, second.key.index, first.agent) == ("adding/sum", 0, 1, "mockllm/model")
    assert [message.role for message in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    call = first.messages[2].tool_calls[0]
    assert (call.name, json.loads(call.arguments)) == ("add", {"x": 1, "y": 2})
    assert first.messages[3].tool_call_id == call.id and first.messages[3].content.startswith("3")
    assert (first.messages[4].reasoning, first.messages[4].content) == ("one and two", "The sum is 3.")
    assert first.tools[0]["function"]["name"] == "add" and "None" not in str(first.tools)
    assert first.outcome["scores"]["includes"]["value"] == "C" and first.stop == "done"


def test_an_atif_document() -> None:
    assert detect(DATA / "atif.json") == "atif"
    reading = read(DATA / "atif.json")
    main, helper = reading
    assert [message.role for message in main.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert main.messages[2].reasoning == "ls will do" and main.agent == "some-model" and helper.agent == "helper"
    assert json.loads(main.messages[2].tool_calls[0].arguments) == {"cmd": "ls"}  # the null was for no parameter that the tool has
    assert main.turns == (TurnTokens(prompt=(1, 2, 3), output=(4, 5)), TurnTokens(prompt=(1, 2, 3, 4, 5, 6), output=(7, 8)))
    assert main.cost.prompt_tokens == 9 and main.tools[0]["function"]["name"] == "run"
    assert reading.imported.lost["logprobs"] == 1 and reading.imported.lost["references from results to sub-agents"] == 1


def test_a_file_of_verifiers() -> None:
    assert detect(DATA / "verifiers_traces.jsonl") == "verifiers"
    reading = read(DATA / "verifiers_traces.jsonl")
    done, broken = reading
    # Two branches share a prefix; every sampled turn is there once, with what the model saw before it.
    assert done.turns == (
        TurnTokens(prompt=(1, 2, 3, 4), output=(5, 6)),
        TurnTokens(prompt=(1, 2, 3, 4, 5, 6, 7, 4), output=(8,)),
        TurnTokens(prompt=(1, 2, 3, 9, 4), output=(10,)),
    )
    assert [message.content for message in done.messages] == ["Add.", "What is 1 + 2?", "Be brief.", "Three."]
    assert (done.key.task, done.key.index, broken.key.index) == ("adding-1", 0, 1)
    assert done.outcome["rewards"] == {"correct": {"score": 0.5, "weight": 2.0}} and done.stop == "done"
    assert done.tools[0] == {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
    assert (broken.stop, broken.error) == ("error", "the sandbox is gone")
    assert reading.imported.lost["logprobs"] == 3


# ---------------------------------------------------------------- round trips

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
WORD = st.text(string.ascii_letters, min_size=1, max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT, st.lists, max_leaves=3
)
IDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=4).map(tuple)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    messages = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    turns = []
    with_ids, sampled = draw(st.booleans()), draw(st.booleans())
    for number in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(TEXT), name=draw(st.none() | WORD)))
        calls = tuple(
            ToolCall(
                id=f"c{number}{place}" if with_ids else "", name=name, arguments=json.dumps(draw(st.dictionaries(TEXT, VALUES, max_size=2)))
            )
            for place, name in enumerate(draw(st.lists(WORD, max_size=2)))
        )
        messages.append(Message(role="assistant", content=draw(TEXT), reasoning=draw(st.none() | TEXT), tool_calls=calls))
        turns.append(TurnTokens(prompt=draw(st.none() | IDS), output=draw(st.none() | IDS), stop=draw(st.sampled_from(["stop", "length"]))))
        for call in calls:
            messages.append(Message(role="tool", content=draw(TEXT), tool_call_id=call.id or None, name=draw(st.none() | WORD)))
    return Trajectory(
        key=SampleKey(model=draw(WORD), task=draw(WORD), environment="e", sampling="s", index=draw(st.integers(0, 9))),
        agent=draw(WORD),
        messages=tuple(messages),
        tools=(ADD,) if draw(st.booleans()) else (),
        turns=tuple(turns) if sampled else (),
        actions=tuple(draw(st.lists(WORD, max_size=2))),
        stop=draw(st.sampled_from(["done", "turn_limit", "token_limit"])),
        outcome=draw(st.dictionaries(WORD, st.integers(0, 9), max_size=2)),
        cost=Cost(prompt_tokens=draw(st.integers(0, 9)), seconds=0.5),
        maker=draw(st.none() | st.builds(Maker, name=WORD, root=TEXT, terms=st.lists(st.builds(Terms), max_size=2).map(tuple))),
        hint=draw(st.none() | TEXT),
    )


NOBODY = SampleKey(model="", task="", environment="", sampling="", index=0)


def without(trajectory: Trajectory, loses: tuple[str, ...]) -> Trajectory:
    """``trajectory`` with everything taken away that ``loses`` names: what must come back."""
    messages = list(trajectory.messages)
    for at, one in enumerate(messages):
        calls = tuple(msgspec.structs.replace(call, arguments=_respelled(call.arguments)) for call in one.tool_calls)
        change: dict[str, Any] = {"tool_calls": calls}
        if "reasoning" in loses:
            change["reasoning"] = None
        if "names of messages" in loses or ("names of tool messages" in loses and one.role == "tool"):
            change["name"] = None
        if any("id" in item.split() or item.startswith("ids of") for item in loses if "tool call" in item):
            change |= {"tool_calls": tuple(msgspec.structs.replace(call, id="") for call in calls), "tool_call_id": None}
        messages[at] = msgspec.structs.replace(one, **change)
    gone: dict[str, Any] = {"messages": tuple(messages)}
    if "key, agent, maker and hint" in loses:
        gone |= {"key": NOBODY, "agent": "", "maker": None, "hint": None}
    if "token ids" in loses:
        gone["turns"] = ()
    if "actions" in loses:
        gone["actions"] = ()
    if "stop, outcome, cost and error" in loses:
        gone |= {"stop": "done", "outcome": {}, "cost": Cost(), "error": None}
    return msgspec.structs.replace(trajectory, **gone)


def _respelled(arguments: str) -> str:
    return json.dumps(json.loads(arguments), sort_keys=True)


WRITABLE = [(name, suffix) for name, one in FORMATS.items() if one.write is not None for suffix in one.writes]


@pytest.mark.parametrize(("name", "suffix"), WRITABLE)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(one=trajectories())
def test_a_round_trip_loses_what_the_format_says_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, suffix: str, one: Trajectory
) -> None:
    path = tmp_path_factory.mktemp("formats") / f"out{suffix}"
    try:
        exported = write([one], path, name)
    except FormatError as error:
        assert name == "sharegpt" and "<think>" in str(error)
        return
    assert exported.written == 1 and exported.loses == FORMATS[name].loses
    (back,) = read(path, name)
    assert without(back, exported.loses) == without(one, exported.loses)


@pytest.mark.parametrize(("name", "suffix"), WRITABLE)
def test_what_is_written_is_detected_and_tool_arguments_grow_no_nulls(tmp_path: Path, name: str, suffix: str) -> None:
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    made = []
    for index, given_ in enumerate(('{"x":1}', '{"y":null}', "{}", '{"z":{"a":1}}')):
        said = (
            Message(role="user", content="?"),
            Message(role="assistant", content="", tool_calls=(ToolCall(id="c", name="add", arguments=given_),)),
            Message(role="tool", content="3", tool_call_id="c"),
        )
        made.append(Trajectory(key=msgspec.structs.replace(key, index=index), agent="m", messages=said, tools=(ADD,), stop="done"))
    path = tmp_path / f"out{suffix}"
    write(made, path, name)
    assert detect(path) in (name, "openai" if name == "trl" else name)  # TRL's Parquet has arguments as strings, as OpenAI's rows
    back = list(read(path))
    assert sorted(one.messages[1].tool_calls[0].arguments for one in back) == sorted(
        one.messages[1].tool_calls[0].arguments for one in made
    )


def test_arrow_padding_is_taken_out_and_counted(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": calling({"x": 1})}, {"messages": calling({"y": 2})}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "padded.parquet")
    reading = read(tmp_path / "padded.parquet")
    assert [one.messages[1].tool_calls[0].arguments for one in reading] == ['{"x":1}', '{"y":2}']
    assert reading.imported.lost == {"nulls that Arrow had put into tool arguments, taken out": 2}
    mixed = lines(tmp_path / "padded.jsonl", {"messages": calling({"x": None, "other": None}), "tools": [ADD]})
    assert next(iter(read(mixed))).messages[1].tool_calls[0].arguments == '{"x":null}'


def test_trl_and_datasets_read_what_is_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from datasets.packaged_modules.json.json import parse_traces_info

    made = list(read(lines(tmp_path / "in.jsonl", *({"messages": calling({name: 1}), "tools": [ADD]} for name in "xyx"))))
    write(made, tmp_path / "out.parquet", "trl")
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in rows] == ['{"x":1}', '{"y":1}', '{"x":1}']
    assert json.loads(rows[0]["tools"]) == [ADD]
    write(made[:1], tmp_path / "out.jsonl", "hub")
    harness, session, prompt, _, users, _ = parse_traces_info((tmp_path / "out.jsonl").read_text().splitlines())
    assert (harness, bool(session), prompt, users) == ("pi", True, "1 + 2?", 1)  # datasets knows Pi's sessions by the same header


# ---------------------------------------------------------------- bad input: one line, file:line, a reason that can be counted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", base.NOT_JSON),
        (b"\xff\xfe\xff", "UTF-16"),
        (b'{"messages": "\xe9"}', base.NOT_UTF8),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', base.NOT_UTF8),
        (b"[" * 100_000, base.NOT_JSON),
        (b"\x00\x01\x02\x00", "binary"),
        (b"[]", base.BAD_FIELD),
        (b"null", base.BAD_FIELD),
        ({"messages": None}, base.NO_MESSAGES),
        ({"messages": []}, base.NO_MESSAGES),
        ({"messages": [None]}, base.BAD_FIELD),
        ({"messages": [{"role": None, "content": None}]}, base.UNKNOWN_ROLE),
        ({"messages": [{"role": ["user"], "content": "x"}]}, base.UNKNOWN_ROLE),
        ({"messages": [{"role": "user", "content": None}]}, base.NO_CONTENT),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, base.NOT_TEXT),
        ({"messages": ASKED}, base.NO_ASSISTANT),
        ({"messages": ANSWERED[1:]}, base.NO_OPENING),
        ({"messages": [*ANSWERED, {"role": "tool", "content": "3"}]}, base.ORPHAN),
        ({"messages": [*calling("{}")[:2], {"role": "tool", "tool_call_id": "other", "content": "3"}]}, base.ORPHAN),
        ({"messages": [*calling("{}")[:2], *ANSWERED]}, base.UNANSWERED),
        ({"messages": calling("{")}, base.BROKEN_CALL),
        ({"messages": calling("[1]")}, base.BROKEN_CALL),
        ({"messages": calling(3)}, base.BROKEN_CALL),
        ({"messages": calling({"x": float("nan")})}, base.BROKEN_CALL),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [None]}]}, base.BROKEN_CALL),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"function": None}]}]}, base.BROKEN_CALL),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": {"x": 1}}]}, base.BAD_FIELD),
        ({"messages": calling("{}", weight=0)}, base.NOT_MADE),
        ({"messages": ANSWERED, "tools": "{"}, base.BROKEN_TOOLS),
        ({"messages": ANSWERED, "tools": [1]}, base.BROKEN_TOOLS),
        ({"conversations": [{"from": "human", "value": "x"}]}, base.MIXED),
        ({"messages": [{"from": "human", "value": "x"}]}, base.MIXED),
    ],
)
def test_a_bad_row_is_one_line_when_strict_and_counted_when_not(tmp_path: Path, row: Any, reason: str) -> None:
    if reason in ("UTF-16", "binary"):
        with pytest.raises(FormatError, match=rf"bad\.jsonl:1 is {reason}"):
            list(read(lines(tmp_path / "bad.jsonl", row), "openai"))
        return
    path = lines(tmp_path / "bad.jsonl", {"messages": ANSWERED}, row, b"", {"messages": ANSWERED})
    with pytest.raises(FormatError, match=rf"bad\.jsonl:2: {re.escape(reason)}") as caught:
        list(read(path))
    assert "\n" not in str(caught.value)
    reading = read(path, strict=False)
    assert [one.key.index for one in reading] == [0, 1]
    assert reading.imported.left_out == {reason: 1} and reading.imported.pieces == 3
    assert reading.imported.examples[reason].startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": None}, base.NO_MESSAGES),
        ({"conversations": [{"from": "human", "value": None}]}, base.NO_CONTENT),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, base.UNKNOWN_ROLE),
        ({"conversations": [{"role": "user", "content": "x"}]}, base.MIXED),
        ({"messages": ANSWERED}, base.MIXED),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "add(1)"}]}, base.BROKEN_CALL),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "observation", "value": "3"}]}, base.NO_ASSISTANT),
    ],
)
def test_bad_sharegpt_rows(tmp_path: Path, row: Any, reason: str) -> None:
    good = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    with pytest.raises(FormatError, match=rf":2: {re.escape(reason)}"):
        list(read(lines(tmp_path / "bad.jsonl", good, row)))


def test_steps_and_nodes_that_are_missing_are_named(tmp_path: Path) -> None:
    document = json.loads((DATA / "atif.json").read_text())
    del document["steps"][1], document["subagent_trajectories"]
    (tmp_path / "gap.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"gap\.json:1: missing turns: the steps are not numbered"):
        list(read(tmp_path / "gap.json"))
    episode = json.loads((DATA / "verifiers_traces.jsonl").read_text().splitlines()[0])
    episode["traces"][0]["nodes"][4]["parent"] = 6
    with pytest.raises(FormatError, match=r"loop\.jsonl:1: missing turns: a node whose parent is not before it: node 4"):
        list(read(lines(tmp_path / "loop.jsonl", episode)))
    episode["traces"][0]["nodes"][4] |= {"parent": 3, "mask": [True]}
    with pytest.raises(FormatError, match="different lengths"):
        list(read(lines(tmp_path / "mask.jsonl", episode)))


@pytest.mark.parametrize("source", ["copied", "dispatched"])
def test_a_turn_that_no_model_made_is_refused_unless_token_ids_leave_it_out(tmp_path: Path, source: str) -> None:
    document = json.loads((DATA / "atif.json").read_text())
    del document["subagent_trajectories"], document["steps"][2]["metrics"]
    document["steps"][2] |= {"is_copied_context": True} if source == "copied" else {"llm_call_count": 0}
    (one,) = read(lines(tmp_path / "a.jsonl", document))
    assert one.turns == (TurnTokens(prompt=(1, 2, 3, 4, 5, 6), output=(7, 8)),)
    del document["steps"][3]["metrics"]
    with pytest.raises(FormatError, match=base.NOT_MADE):
        list(read(lines(tmp_path / "b.jsonl", document)))


def test_a_line_over_the_limit_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "long.jsonl").open("wb") as file:
        file.write(
            json.dumps({"messages": ANSWERED}).encode() + b"\n" + b"x" * 20_000_000 + b"\n" + json.dumps({"messages": ANSWERED}).encode()
        )
    tracemalloc.start()
    reading = read(tmp_path / "long.jsonl", strict=False, max_bytes=1_000_000)
    assert len(list(reading)) == 2
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert reading.imported.left_out == {base.TOO_LONG: 1} and "1,000,000 bytes" in reading.imported.examples[base.TOO_LONG]


@pytest.mark.parametrize("format", [None, "openai"])
def test_a_file_of_one_endless_line_is_refused_in_one_line_and_little_memory(tmp_path: Path, format: str | None) -> None:
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.write(b'{"messages": [{"role": "user", "content": "')
        for _ in range(12):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"line\.jsonl:1: too long: the line is longer than 1,000,000 bytes") as refused:
        list(read(tmp_path / "line.jsonl", format, max_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.eval"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"PK\x03\x04 cut off", b"\x00\xff" * 500])
def test_empty_and_binary_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for format in (None, *FORMATS):
        with pytest.raises(FormatError) as caught:
            list(read(tmp_path / name, format))
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_log_names_its_entry(tmp_path: Path) -> None:
    whole = (DATA / "inspect.eval").read_bytes()
    (tmp_path / "cut.eval").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"cut\.eval is no Inspect log"):
        list(read(tmp_path / "cut.eval"))
    with zipfile.ZipFile(DATA / "inspect.eval") as log:
        entry = next(one for one in log.infolist() if one.filename.startswith("samples/"))
    at = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
    (tmp_path / "bits.eval").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(FormatError, match=r"bits\.eval:samples/sum_epoch_\d\.json: a damaged entry"):
        list(read(tmp_path / "bits.eval"))
    with pytest.raises(FormatError, match="too long"):
        list(read(DATA / "inspect.eval", max_bytes=2000))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SEEDS: dict[str, Any] = {
    "openai": {"messages": calling("{}"), "tools": [ADD]},
    "sharegpt": {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
    "hub": [{"type": "session", "id": "s", "harness": "h"}, *({"type": "message", "message": one} for one in ANSWERED)],
}


@pytest.mark.parametrize("name", ["openai", "sharegpt", "hub", "atif", "verifiers", "inspect"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_part_replaced_by_anything_is_read_or_a_fault(name: str, data: st.DataObject) -> None:
    file = {"atif": "atif.json", "verifiers": "verifiers_traces.jsonl", "inspect": "inspect.eval"}.get(name)
    raw = next(FORMATS[name].units(DATA / file, base.MAX_BYTES))[1] if file else SEEDS[name]
    raw = json.loads(json.dumps(raw))
    holder, at = {"": raw}, ""
    for _ in range(data.draw(st.integers(0, 6))):  # walk down to some part
        inner = holder[at]  # type: ignore[index]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        if not keys:
            break
        holder, at = inner, data.draw(st.sampled_from(keys))
    if holder is raw and name in ("verifiers", "inspect"):
        at = 1  # units makes the pair, not the file
    holder[at] = data.draw(JSON)  # type: ignore[index]
    try:
        piece = tuple(raw) if name in ("verifiers", "inspect") else raw
        draft = FORMATS[name].parse(piece, lambda _: None)
        base.check(draft.messages, draft.stop)
    except base.Fault:
        pass
    else:
        assert msgspec.json.decode(msgspec.json.encode(draft), type=base.Draft).messages == draft.messages


# ---------------------------------------------------------------- keys, names, page


def test_keys_name_the_task_and_count_its_tries(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    rows = [
        {"messages": ANSWERED, "id": 1, "score": 0.5},
        {"messages": other},
        {"messages": ANSWERED, "id": 2},
        {"messages": other, "task_id": "t"},
    ]
    made = list(read(lines(tmp_path / "a.jsonl", *rows), agent="teacher"))
    assert made[0].key.task == made[2].key.task != made[1].key.task and made[3].key.task == "t"
    assert [one.key.index for one in made] == [0, 0, 1, 0]
    assert made[0].key == SampleKey(model="teacher", task=made[0].key.task, environment="imported", sampling="recorded", index=0)
    assert made[0].outcome == {"id": 1, "score": 0.5}


def test_unknown_formats_suffixes_and_ways_out(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="did you mean 'sharegpt'"):
        read(tmp_path / "a.jsonl", "sharegtp")
    with pytest.raises(FormatError, match="only read"):
        write([], tmp_path / "a.eval", "inspect")
    with pytest.raises(FormatError, match=r"written with the suffix \.jsonl"):
        write([], tmp_path / "a.parquet", "openai")
    with pytest.raises(FormatError, match="does not exist"):
        detect(tmp_path / "none.csv")
    with pytest.raises(FormatError, match="cannot be read"):
        list(read(tmp_path / "none.jsonl", "trl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="holds no files"):
        list(read(tmp_path / "folder", "trl"))


def test_the_page_says_what_the_code_says() -> None:
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    for name, one in FORMATS.items():
        cells = [name, ", ".join(one.suffixes), "yes" if one.write else "no", "; ".join(one.loses) or "-"]
        assert f"| {' | '.join(cells)} |" in page, name
    for reason in (
        value
        for name, value in vars(base).items()
        if name.isupper() and isinstance(value, str) and name not in ("ENVIRONMENT", "RECORDED", "OURS")
    ):
        assert f"- {reason}" in page, reason
