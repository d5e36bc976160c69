"""Recorded traces: as tasks, as demonstrations, and what they are worth before any is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from sharpen.cli import main
from sharpen.environments.tools import Functions
from sharpen.errors import FormatError, TaskError
from sharpen.evaluation import weigh
from sharpen.ladder import DEMONSTRATIONS
from sharpen.policies.scripted import scripted_model
from sharpen.records import DemonstrationQuality, Message, SampleKey, Task, Trajectory, Verdict
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.sampling import Pool
from sharpen.settings import load_settings
from sharpen.store.files import read_json
from sharpen.tasks.base import Splits
from sharpen.tasks.load import load_tasks
from sharpen.tasks.recorded import Demonstrations, Finder
from sharpen.tasks.traces import Traces

DEMO = Splits(demo=2)


def chat(question: str, *turns: str, system: str = "") -> dict[str, Any]:
    """A row of messages: the question, then assistant and user turns in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return {"messages": messages + [{"role": ("assistant", "user")[at % 2], "content": turn} for at, turn in enumerate(turns)]}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def traces(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Traces:
    return Traces(path=str(written(folder / "traces.jsonl", rows)), **{"splits": DEMO, **settings})


def test_each_question_is_a_task_and_each_trace_a_try_of_it(tmp_path: Path) -> None:
    rows = [chat("one?", "1"), chat("two?", "2"), chat("one?", "eins"), chat("ONE?", "UNO"), chat("one?", "uno", system="Be kind.")]
    tasks = load_tasks(traces(tmp_path, rows, splits=Splits(demo=3)))
    assert len(tasks) == 4  # a system message makes another question, and so does case: "Reverse: ab" is not "Reverse: AB"
    assert len({task.family for task in tasks.tasks}) == 3  # but what differs in case alone goes to one split
    assert tasks.recorded is not None and len(tasks.recorded.trajectories) == 5
    one = next(task for task in tasks.tasks if task.prompt[0].content == "one?")
    assert [trace.messages[-1].content for trace in tasks.recorded.of(one)] == ["1", "eins"]
    assert len({trace.key for trace in tasks.recorded.trajectories}) == 5
    assert all(task.reference is None and tasks.environment.expert(task) is None for task in tasks.tasks)  # a trace is no gold solution
    again = load_tasks(traces(tmp_path, rows[::-1], splits=Splits(demo=3)))
    assert {task.key for task in again.tasks} == {task.key for task in tasks.tasks}  # by what it asks, not where it stands


def test_what_was_done_before_the_last_turn_is_part_of_what_it_is_asked(tmp_path: Path) -> None:
    """Two tool calls that differ in their arguments only, answered alike, are two contexts."""

    def called(n: int) -> dict[str, Any]:
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": n})}}
        turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "ok", "tool_call_id": "a"}]
        return {"messages": [{"role": "user", "content": "Do it."}, *turns, {"role": "assistant", "content": f"did {n}"}]}

    tasks = load_tasks(traces(tmp_path, [called(1), called(2)], ask="last", gold=True, splits=Splits(demo=1)))
    assert {task.reference for task in tasks.tasks} == {"did 1", "did 2"}
    thanked = {"messages": [*chat("Say 3.", "3")["messages"], {"role": "user", "content": "thanks"}]}
    (task,) = load_tasks(traces(tmp_path, [thanked], gold=True, splits=Splits(demo=1))).tasks
    assert task.reference == "3"  # the last answer, not the last word


def test_gold_traces_give_references_and_must_agree(tmp_path: Path) -> None:
    rows = [chat("one?", "1"), chat("two?", "2")]
    tasks = load_tasks(traces(tmp_path, rows, gold=True))
    assert {task.reference for task in tasks.tasks} == {"1", "2"}
    assert all(tasks.environment.expert(task) for task in tasks.tasks)
    with pytest.raises(TaskError, match=r"gold traces of task 'one\?' end differently: '1', '3'; keep one"):
        load_tasks(traces(tmp_path, [*rows, chat("one?", "3")], gold=True))


def test_the_last_turn_can_be_asked_for_alone(tmp_path: Path) -> None:
    rows = [chat("one?", "1", "and two?", "2"), chat("one?", "1", "and three?", "3")]
    with pytest.raises(TaskError, match="trace 1: 2 assistant turns, but a single turn takes one; name the environment"):
        load_tasks(traces(tmp_path, rows))
    tasks = load_tasks(traces(tmp_path, rows, ask="last"))
    assert sorted(task.prompt[-1].content for task in tasks.tasks) == ["and three?", "and two?"]
    assert all(len(task.prompt) == 3 for task in tasks.tasks)


BAD: list[tuple[str, bytes, str]] = [
    ("empty", b"", "is of no known format, or empty"),
    ("not JSON", b'{"messages": [\n', "not JSON"),
    (
        "a key twice",
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
        r"jsonl:1: a key given twice: 'content'; delete one",
    ),
    ("UTF-16", "{}".encode("utf-16"), "UTF-16"),
    ("no messages", b'{"messages": []}\n', "no messages"),
    ("nulls everywhere", b'{"messages": null}\n', "no messages"),
    ("missing turns", b'{"messages": [{"role": "assistant", "content": "1"}]}\n', "nothing before the first assistant turn"),
    ("an orphan", b'{"messages": [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "1"}]}\n', "orphan"),
]


@pytest.mark.parametrize(("name", "data", "says"), BAD, ids=[name for name, _, _ in BAD])
def test_traces_that_cannot_be_used_end_in_one_line(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_bytes(data)
    with pytest.raises(FormatError, match=says) as caught:
        load_tasks(Traces(path=str(tmp_path / "traces.jsonl"), splits=DEMO))
    assert "\n" not in str(caught.value)


def test_what_lenient_reading_leaves_out_is_counted_with_the_demonstrations(tmp_path: Path) -> None:
    path = written(tmp_path / "traces.jsonl", [chat("one?", "1"), {"messages": []}, chat("two?", "2")])
    tasks = load_tasks(Traces(path=str(path), splits=DEMO, strict=False))
    assert tasks.recorded is not None and tasks.recorded.left_out == {"no messages": 1}


# ---------------------------------------------------------------- beside tasks


def tasks_of(*prompts: str, system: str = "") -> list[Task]:
    lead = (Message(role="system", content=system),) if system else ()
    return [Task(key=f"k{at}", family=f"k{at}", prompt=(*lead, Message(role="user", content=p))) for at, p in enumerate(prompts)]


def recorded_as(question: str, key: str = "?", system: str = "") -> Trajectory:
    lead = (Message(role="system", content=system),) if system else ()
    messages = (*lead, Message(role="user", content=question), Message(role="assistant", content="yes"))
    sample = SampleKey(model="m", task=key, environment="e", sampling="s", index=0)
    return Trajectory(key=sample, agent="them", messages=messages, stop="done")


def test_a_trace_finds_its_task_by_key_by_question_and_without_the_system_message() -> None:
    finder = Finder(tasks_of("one?", "two?"))
    assert finder.find(recorded_as("something else", key="k1")).key == "k1"  # type: ignore[union-attr]
    assert finder.find(recorded_as("TWO?")).key == "k1"  # type: ignore[union-attr]
    assert finder.find(recorded_as("two?", system="You are theirs.")).key == "k1"  # type: ignore[union-attr]
    assert finder.find(recorded_as("three?")) is None
    double = Finder([*tasks_of("one?", system="A."), *(replace(t, key="b", family="b") for t in tasks_of("one?", system="B."))])
    assert double.find(recorded_as("one?", system="B.")).key == "b"  # type: ignore[union-attr]
    assert double.find(recorded_as("one?")) is None  # either could be meant


def ladder(folder: Path, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A scripted ladder over sums in a file, with demonstrations from another."""
    (folder / "verifier.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    questions = [{"prompt": f"{a} + {b} = ?", "reference": str(a + b), "split": split} for split, a, b in PLACES]
    written(folder / "tasks.jsonl", questions)
    written(folder / "demos.jsonl", rows)
    scripted_model(folder / "base", skill=0.3)
    return {
        "model": str(folder / "base"),
        "tasks": {"source": "jsonl", "path": str(folder / "tasks.jsonl"), "verifier": f"{folder / 'verifier.py'}:verify", "exact": True},
        "demonstrations": {"path": str(folder / "demos.jsonl")},
        "evaluation": {"n": 2, "k": [1, 2], "max_tokens": 16},
        "sampling": {"n": 2, "max_tokens": 16},
        "ladder": {"rungs": ["sft"]},
        "terms": [TERMS],
        **more,
    }


TERMS = {
    "teacher": "a person", "known_as": ["imported"], "licence": "CC0-1.0", "settled_by": "that person", "settled_on": "2026-01-01",
    "evidence": "https://example.org/letter",
}  # fmt: skip
PLACES = [(split, 10 * at, b) for at, split in enumerate(("demo", "train", "dev", "test")) for b in range(1, 9)]


def climbed(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump(settings))
    climb(load_settings(path, {}), folder / "runs")
    return folder / "runs" / "ladder"


def test_demonstrations_from_a_file_teach_and_the_page_says_what_they_are_worth(tmp_path: Path) -> None:
    rows = [chat(f"0 + {b} = ?", str(b)) for b in range(1, 7)]
    rows += [chat("0 + 1 = ?", "9"), chat("0 + 2 = ?", " 2")]  # one is wrong, one says the same otherwise
    rows += [chat("10 + 1 = ?", "11"), chat("what else?", "nothing")]
    run = climbed(tmp_path, ladder(tmp_path, rows))
    worth = read_json(run / DEMONSTRATIONS, DemonstrationQuality)
    assert (worth.count, worth.passed, worth.errors, worth.tasks, worth.shown, worth.covered) == (8, 7, 0, 8, 6, 6)
    assert worth.pass_rate.value == pytest.approx((5 + 0.5) / 6) and worth.pass_rate.n == 6
    assert worth.left_out == {"answers what no task asks": 1, "of a task in train: demonstrations are those of the demo split": 1}
    assert (worth.junctions, worth.parted) == (2, 1)  # what the environment understood: " 2" is "2"
    assert worth.partings[0].ways == (("1", 1), ("9", 1))
    sft = next(rung for rung in read_run(run).rungs if rung.name == "001-sft")
    assert sft.selection is not None and sft.selection.counts["fail: judged wrong"] == 1  # left out and counted
    page = (run / "report.html").read_text()
    assert (
        "7 of 8 pass the verifier; the mean over tasks is 91.7 %" in page
        and "cover 6 of the 8 tasks" in page
        and "At 1 of the 2 places" in page
    )
    assert "1 traces beside: answers what no task asks" in page


def test_a_changed_file_of_demonstrations_is_read_again(tmp_path: Path) -> None:
    """Its trajectories have the same keys as before: what they said then must not be what trains now."""
    climbed(tmp_path, ladder(tmp_path, [chat("0 + 1 = ?", "9"), chat("0 + 2 = ?", "2")]))
    written(tmp_path / "demos.jsonl", [chat("0 + 1 = ?", "1"), chat("0 + 2 = ?", "2")])
    run = climbed(tmp_path, yaml.safe_load((tmp_path / "ladder.yaml").read_text()))
    assert read_json(run / DEMONSTRATIONS, DemonstrationQuality).passed == 2


def test_demonstrations_that_fit_nothing_and_words_nobody_can_vouch_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ladder(tmp_path, [chat("10 + 1 = ?", "11")])
    (tmp_path / "l.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", str(tmp_path / "l.yaml"), "--runs", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert "demonstrates no task of the demo split: 1 of a task in train" in error and error.strip().count("\n") <= 1
    settings["tasks"]["verifier"] = "environment"
    settings["demonstrations"]["replay"] = False
    written(tmp_path / "demos.jsonl", [chat("0 + 1 = ?", "1")])
    (tmp_path / "l.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", str(tmp_path / "l.yaml"), "--runs", str(tmp_path / "r2")]) == 2
    assert "the environment can only vouch for what is played in it" in capsys.readouterr().err


def test_a_replayed_trace_meets_the_tools_as_the_policy_will(tmp_path: Path) -> None:
    """Recorded with other words of the tool and no schemas: replayed, it has the environment's own."""
    doc = '"""Double it.\n\n    Args:\n        n: What to double.\n    """'
    (tmp_path / "tools.py").write_text(f"def double(n: int) -> str:\n    {doc}\n    return str(2 * n)\n")
    call = {"id": "a", "type": "function", "function": {"name": "double", "arguments": '{"n": 4}'}}
    messages = [
        {"role": "user", "content": "What is 2 * 4?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "it is eight", "tool_call_id": "a"}, {"role": "assistant", "content": "8"},
    ]  # fmt: skip
    path = written(tmp_path / "t.jsonl", [{"messages": messages}, chat("What is 2 * 5?", "10")])
    environment = Functions(functions=(f"{tmp_path / 'tools.py'}:double",))
    tasks = load_tasks(Traces(path=str(path), splits=DEMO, environment=environment))
    from sharpen.methods.base import Bench

    bench = Bench.__new__(Bench)
    bench.tasks = tasks
    task = next(task for task in tasks.tasks if "2 * 4" in task.prompt[0].content)
    (replayed,) = bench._demonstrated(task, tasks.recorded)
    assert [message.content for message in replayed.messages if message.role == "tool"] == ["8"]
    assert replayed.tools and replayed.stop == "done" and replayed.agent == "imported"


# ---------------------------------------------------------------- what they are worth


def pool(*tries: tuple[str, tuple[str, ...], str]) -> Pool:
    """(task, actions, outcome) of each try."""
    tasks = {name: Task(key=name, family=name) for name, _, _ in tries}
    trajectories, verdicts = {}, {}
    for at, (task, actions, outcome) in enumerate(tries):
        key = SampleKey(model="m", task=task, environment="e", sampling="recorded", index=at)
        messages = tuple(Message(role="assistant", content=action) for action in actions)
        trajectories[key] = Trajectory(key=key, agent=f"by {at % 2}", messages=messages, actions=actions, stop="done")
        verdicts[key] = Verdict(key=key, outcome=outcome)  # type: ignore[arg-type]
    return Pool(tasks, tuple(trajectories), trajectories, verdicts)


def test_steps_over_the_shortest_and_where_they_part() -> None:
    worth = weigh(
        pool(
            ("a", ("n", "e"), "pass"), ("a", ("n", "w", "e"), "pass"), ("a", ("s",), "fail"), ("a", ("n",), "error"),
            ("b", ("take",), "pass"), ("b", ("take",), "pass"), ("c", ("go",), "fail"),
        ), {}, seed=0,
    )  # fmt: skip
    assert (worth.count, worth.passed, worth.errors, worth.shown, worth.covered) == (7, 4, 1, 3, 2)
    assert worth.pass_rate.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert worth.excess.value == pytest.approx((0.5 + 0) / 2) and worth.longest_excess == 1 and worth.excess.n == 2
    assert (worth.junctions, worth.parted) == (3, 2)  # a's start, a after n, b's start; what broke shows nobody's choice
    assert [(p.task, p.step, p.ways) for p in worth.partings] == [("a", 1, (("n", 2), ("s", 1))), ("a", 2, (("e", 1), ("w", 1)))]
    assert worth.by == {"by 0": 4, "by 1": 3}


def test_no_demonstrations_are_worth_nothing_and_say_so() -> None:
    worth = weigh(pool(), {}, seed=0)
    assert worth.count == 0 and worth.pass_rate.value != worth.pass_rate.value and worth.excess.n == 0
    assert msgspec.json.decode(msgspec.json.encode(worth))["pass_rate"]["value"] is None


def test_imported_tries_of_one_task_are_not_all_duplicates(tmp_path: Path) -> None:
    """What was done is what was said, where a file knows no actions: two different answers are two."""
    from sharpen.formats.load import read

    path = written(tmp_path / "t.jsonl", [chat("one?", "1"), chat("one?", "eins")])
    assert [trajectory.actions for trajectory in read(path)] == [("1",), ("eins",)]


def test_ids_of_another_tokenizer_do_not_come_with_a_demonstration(tmp_path: Path) -> None:
    from sharpen.tasks.recorded import recorded

    task = replace(tasks_of("one?")[0], split="demo")
    from sharpen.formats.load import write
    from sharpen.records import TurnTokens

    trajectory = replace(recorded_as("one?"), turns=(TurnTokens(prompt=(1, 2), output=(3, 4)),))
    write([trajectory], tmp_path / "t.jsonl", "atif")
    (theirs,) = recorded(Demonstrations(path=str(tmp_path / "t.jsonl")), [task]).trajectories
    assert theirs.turns == () and theirs.key.task == task.key
