"""The audit: what verifiers get wrong, what it cannot look at, and what is shown of it."""

from __future__ import annotations

import ast
import itertools
import json
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen import loop, stats
from sharpen.agents.recorded import replay
from sharpen.audit import Tries, audit, fooled
from sharpen.cli import main
from sharpen.environments.base import Step
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import EnvironmentFault, TaskError
from sharpen.labels import Labels, content, copy_of, write_label
from sharpen.records import Label, Message, SampleKey, Task, Trajectory, Verdict
from sharpen.settings import load_settings
from sharpen.store.files import read_json
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.answer import Choice, Exact, Numeric
from sharpen.verifiers.base import Described, close
from sharpen.verifiers.code import Code, CodeVerifier
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.json import Json
from sharpen.verifiers.load import load_verifier as verifier_for
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.part import DENIAL
from sharpen.verifiers.regex import Regex
from sharpen.verifiers.run import judge
from sharpen.verifiers.sql import Sql


def taskset(
    fn: Callable[..., Any] | None, count: int = 6, *, gold: bool = True, split: str = "train", answer: str = "The answer is {}."
) -> TaskSet:
    tasks = tuple(
        Task(
            key=f"t{n}",
            family=f"t{n}",
            split=split,
            prompt=(Message(role="user", content=f"What is {n} + 40?"),),
            params={"gold": answer.format(n + 40)} if gold else {},
            reference=str(n + 40),
        )
        for n in range(count)
    )
    return TaskSet("sums", tasks, SingleTurn(), None if fn is None else FunctionVerifier(fn, "v"))


def last_word(answer: str, reference: str) -> bool:
    return len(answer.split()) == 4 and answer.split()[-1].strip(".") == reference


def somewhere(answer: str, reference: str) -> bool:
    return reference in answer


def anything(answer: str, reference: str) -> bool:
    return bool(answer.strip())


def wrong_kinds(fn: Callable[..., Any], **options: Any) -> set[str]:
    return {probe.kind for probe in audit(taskset(fn, **options), Tries(), Labels()).probes if probe.right < probe.tried}


def test_a_good_verifier_gets_every_made_up_answer_right() -> None:
    found = audit(taskset(last_word), Tries(), Labels())
    assert {probe.kind for probe in found.probes} >= {
        "gold", "empty", "off-task", "gold cut in half", "another task's gold", "the question repeated", "asks to be passed", "every answer listed",
        "one answer after the other", "the right form, a wrong value",
    }  # fmt: skip
    assert all(probe.right == probe.tried == 6 for probe in found.probes)
    assert found.unstable == 0 and found.repeated == 6 * len(found.probes)
    assert "nothing says how often the verifier is wrong" in found.limits[0]


def test_a_verifier_that_looks_for_the_answer_anywhere_is_fooled_by_lists() -> None:
    # the question of task 0 holds its own answer: that kind is shown, and judged by who reads it
    assert wrong_kinds(somewhere) == {"every answer listed", "one answer after the other", "the question repeated"}


def test_a_verifier_that_passes_anything_fails_every_cheat_but_the_empty_one() -> None:
    found = audit(taskset(anything), Tries(), Labels())
    right = {probe.kind for probe in found.probes if probe.right == probe.tried}
    assert right == {"gold", "empty"}
    example = next(probe.example for probe in found.probes if probe.kind == "off-task")
    assert "task 't0'" in example and "got pass" in example and "\n" not in example


def test_choices_are_named_all_at_once() -> None:
    def choice(answer: str, reference: str) -> bool:
        return "C" in answer

    tasks = tuple(
        Task(key=f"t{n}", family=f"t{n}", split="dev", prompt=(Message(role="user", content="?"),), params={"gold": "C"}, reference="C")
        for n in range(2)
    )
    found = audit(TaskSet("choices", tasks, SingleTurn(), FunctionVerifier(choice, "v")), Tries(), Labels())
    wrong = {probe.kind for probe in found.probes if probe.right < probe.tried}
    assert wrong == {"every choice named", "every answer listed", "one answer after the other"}


def test_a_verifier_brings_its_own_cheats() -> None:
    class Knows(FunctionVerifier):
        def cheats(self, task: Task) -> dict[str, Any]:
            return {"sys.exit(0)": "import sys; sys.exit(0)", "in turns": [Message(role="assistant", content="a tool's word")]}

    tasks = taskset(last_word)
    found = audit(TaskSet("t", tasks.tasks, tasks.environment, Knows(somewhere, "v")), Tries(), Labels())
    assert {"sys.exit(0)", "in turns"} <= {probe.kind for probe in found.probes}


def test_two_verdicts_on_one_input_are_counted() -> None:
    asked = defaultdict[tuple[str, str], Iterator[int]](itertools.count)
    found = audit(taskset(lambda answer, reference: next(asked[answer, reference]) == 0), Tries(), Labels())
    assert found.unstable >= found.repeated - 1 > 0 and "pass, then fail" in found.unstable_example  # one answer is made up in two ways


def test_tries_are_judged_at_once_as_they_are_in_a_run() -> None:
    two = threading.Barrier(2)
    found = audit(taskset(lambda answer, reference: bool(two.wait(10)) and False), Tries(), Labels())
    assert not two.broken and not any(probe.errors for probe in found.probes)


@pytest.mark.parametrize("given", [float("nan"), "yes", None, 1])
def test_a_verifier_that_returns_no_verdict_errs_and_is_not_called_unstable(given: object) -> None:
    found = audit(taskset(lambda answer, reference: given), Tries(), Labels())
    assert all(probe.errors == probe.tried and probe.right == 0 for probe in found.probes) and found.unstable == 0


class Door:
    """Opened by two words in order, each task's own."""

    name, max_turns = "door", 3

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    async def start(self, task: Task) -> tuple[Any, tuple[Message, ...]]:
        if self.broken:
            raise EnvironmentFault("the door is stuck")
        return DoorPlay(task), (Message(role="user", content="A door."),)

    def expert(self, task: Task) -> tuple[str, ...]:
        return (f"knock {task.key}", f"push {task.key}")


class DoorPlay:
    tools = ()

    def __init__(self, task: Task) -> None:
        self.left = [f"knock {task.key}", f"push {task.key}"]

    async def step(self, message: Message) -> Step:
        if self.left and message.content == self.left[0]:
            self.left.pop(0)
        return Step(
            messages=(Message(role="user", content="..."),), action=message.content, done=not self.left, outcome={"won": not self.left}
        )

    async def close(self) -> None: ...


def test_an_environments_own_word_is_audited_over_whole_episodes() -> None:
    tasks = tuple(Task(key=f"d{n}", family=f"d{n}", split="train", reference=n) for n in range(3))
    found = audit(TaskSet("doors", tasks, Door(), EnvironmentOutcome()), Tries(), Labels())
    assert {probe.kind for probe in found.probes} == {
        "gold",
        "empty",
        "off-task",
        "gold cut in half",
        "another task's gold",
        "asks to be passed",
    }
    assert all(probe.right == probe.tried == 3 for probe in found.probes) and found.exact
    stuck = audit(TaskSet("doors", tasks, Door(broken=True), EnvironmentOutcome()), Tries(), Labels())
    assert all(probe.errors == 3 and probe.right == 0 and "the door is stuck" in probe.example for probe in stuck.probes)


def test_what_cannot_be_looked_at_is_said() -> None:
    one = audit(taskset(last_word, 1), Tries(), Labels())
    assert "there is one task" in one.limits[0] and "another task's gold" not in {probe.kind for probe in one.probes}
    bare = audit(taskset(last_word, gold=False), Tries(), Labels())
    assert "no task has a gold solution" in bare.limits[0] and "gold" not in {probe.kind for probe in bare.probes}
    with pytest.raises(TaskError, match="no verifier to audit"):
        audit(taskset(None), Tries(), Labels())
    with pytest.raises(TaskError, match="in the split test, which an audit leaves alone"):
        audit(taskset(last_word, split="test"), Tries(), Labels())


# ---------------------------------------------------------------- labels and second verifiers


def tries(tasks: TaskSet, answers: dict[int, str]) -> dict[SampleKey, Trajectory]:
    made = [loop.run(replay(tasks.tasks[n], tasks.environment, (answer,), agent="m")) for n, answer in answers.items()]
    return {one.key: one for one in made}


def label(one: Trajectory, said: str, of: int = 10, population: str = "p") -> Label:
    return Label(
        key=one.key, digest=content(one), label=said, labeller="ann", at="", seconds=1.0, of=of, inclusion=0.5, population=population,  # type: ignore[arg-type]
        trajectory=copy_of(one),
    )  # fmt: skip


def test_error_rates_by_labels_have_intervals_and_weights() -> None:
    tasks = taskset(somewhere, 100)
    right, fooled, fails = range(30), range(30, 40), range(40, 80)
    answers = (
        {n: f"The answer is {n + 40}." for n in right} | {n: f"{n + 40} or so, or 7" for n in fooled} | dict.fromkeys(fails, "No idea.")
    )
    made = tries(tasks, answers)
    verdicts = {key: tasks.verifier.verify(next(t for t in tasks.tasks if t.key == key.task), one) for key, one in made.items()}  # type: ignore[union-attr]
    number = {key: int(key.task[1:]) for key in made}
    labels = Labels(
        [
            label(one, "good" if number[key] in right else "bad", *((80, "fails") if number[key] in fails else (40, "passes")))
            for key, one in made.items()
        ]
    )
    found = audit(tasks, Tries(made, verdicts), labels)
    (held,) = found.confusions
    assert (held.truth, held.n, held.passes, held.good) == ("labels", 80, 40, 30)
    assert held.false_passes.value == 0.25
    plain = stats.clopper_pearson(10, 40)
    assert (held.false_passes.low, held.false_passes.high) == pytest.approx((plain.low, plain.high))
    assert held.false_fails.value == 0.0 and held.false_fails.high > 0.05
    assert held.bad_passes.value == pytest.approx(10 / (10 + 40 * 2))  # each fail stands for two
    assert held.bad_passes.high > held.bad_passes.value > held.bad_passes.low
    assert found.purity is not None and found.purity.share.value == 0.75 and found.purity.outcome == "below"
    assert 0.7 < found.forecast < 0.95


def test_labels_outlive_their_run_and_are_judged_as_the_verifier_judges_today() -> None:
    tasks = taskset(last_word)
    made = tries(tasks, {0: "The answer is 40.", 1: "41 it is"})
    found = audit(tasks, Tries(), Labels([label(one, "good") for one in made.values()]))
    (held,) = found.confusions
    assert (held.passes, held.good) == (1, 2) and held.false_fails.value == 0.5
    assert found.purity is None and found.forecast == 1.0


def test_labels_on_passing_tries_alone_say_nothing_of_what_fails() -> None:
    tasks = taskset(somewhere)
    made = tries(tasks, {n: f"The answer is {n + 40}." for n in range(5)})
    found = audit(tasks, Tries(), Labels([label(one, "good") for one in made.values()]))
    (held,) = found.confusions
    assert held.false_passes.value == 0.0 and math.isnan(held.false_fails.value) and math.isnan(held.bad_passes.value)
    assert any("--among failed" in limit for limit in found.limits)


def test_unsure_labels_and_errors_count_neither_way() -> None:
    tasks = taskset(lambda answer, reference: 1 / 0 if answer == "boom" else True)
    made = list(tries(tasks, {0: "boom", 1: "x", 2: "y"}).values())
    (held,) = audit(tasks, Tries(), Labels([label(made[0], "good"), label(made[1], "unsure"), label(made[2], "bad")])).confusions
    assert (held.n, held.unused) == (1, 2) and held.false_passes.value == 1.0 and math.isnan(held.false_fails.value)


def test_a_second_verifier_is_a_truth_to_be_held_against() -> None:
    tasks = taskset(somewhere, 20)
    made = tries(tasks, {n: f"The answer is {n + 40}." if n < 15 else f"{n + 40} or 7" for n in range(20)})
    found = audit(tasks, Tries(made, {}), Labels(), second=FunctionVerifier(last_word, "strict"))
    (held,) = found.confusions
    assert held.truth == "the verifier strict" and held.false_passes.value == 0.25 and found.forecast == 0.75


def test_verdicts_that_are_there_are_not_asked_for_again() -> None:
    asked: list[str] = []
    tasks = taskset(lambda answer, reference: bool(asked.append(answer)) or somewhere(answer, reference), 20)
    made = tries(tasks, {n: f"try {n}" for n in range(20)})
    known = {key: Verdict(key=key, outcome="fail", verifier="v") for key in list(made)[3:]}
    audit(tasks, Tries(made, known), Labels(), second=FunctionVerifier(last_word, "strict"), limit=1)
    assert (
        sum(answer.startswith("try ") for answer in asked) == 2 + 3
    )  # one try twice, to see whether it gets the same, and what is not judged


def test_tries_of_unknown_tasks_and_of_another_verifier_are_said() -> None:
    tasks = taskset(last_word)
    made = tries(tasks, {0: "The answer is 40."})
    key = next(iter(made))
    strange = {SampleKey(model="m", task="gone", environment="e", sampling="s", index=0): made[key]}
    found = audit(tasks, Tries(made | strange, {key: Verdict(key=key, outcome="pass", verifier="older")}), Labels())
    assert found.limits[0].startswith("1 tries are of no task") and "give sharpen verify" in found.limits[1]


# ---------------------------------------------------------------- the verb


VERIFIERS = """
def good(answer, reference): return answer.strip() == reference
def weak(answer, reference): return reference in answer
def test_only(answer, reference): return True
"""


def project(folder: Path, verifier: str = "weak", **tasks: Any) -> Path:
    (folder / "verifiers.py").write_text(VERIFIERS)
    rows = [{"prompt": f"Calculate {n} + 40.", "reference": str(n + 40)} for n in range(30)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "jsonl", "path": str(folder / "tasks.jsonl"), "splits": {"train": 20, "dev": 10}, **tasks}
    if verifier:
        source["verifier"] = f"{folder / 'verifiers.py'}:{verifier}"
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"tasks": source, "labels": str(folder / "labels.jsonl")}))
    return path


def test_the_verb_prints_a_table_and_leaves_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sharpen.records import Audit

    second = f"{tmp_path / 'verifiers.py'}:good"
    (tmp_path / "work").mkdir()
    assert main(["audit", str(project(tmp_path)), str(tmp_path / "work"), "--second", second]) == 0
    printed = capsys.readouterr().out
    assert "every answer listed" in printed and "not exact" in printed and "there are no tries" in printed
    found = read_json(tmp_path / "work/audit.json", Audit)
    assert {"every answer listed", "one answer after the other"} < {probe.kind for probe in found.probes if probe.right < probe.tried}


@pytest.mark.parametrize(
    ("verifier", "flags", "why"),
    [
        ("", [], "has no verifier"),
        ("good", ["--limit", "0"], "--limit is 0"),
        ("good", ["--second", "nowhere.py:f"], "nowhere.py"),
        ("good", ["--tasks.splits", "{test: 30}"], "in the split test, which an audit leaves alone"),
        ("good", ["--ladder.purity", "1"], "purity is 1.0, but must be between 0 and 1"),
    ],
)
def test_an_audit_that_cannot_be_made_is_one_line(
    verifier: str, flags: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    assert main(["audit", str(project(tmp_path, verifier)), str(tmp_path / "work"), *flags]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


# ---------------------------------------------------------------- cheats that fit a verifier


def own(settings: Any, task: Task) -> tuple[Described, dict[str, Any]]:
    verifier = verifier_for(settings)
    assert verifier.problem(task) == ""
    return verifier, verifier.cheats(task)  # type: ignore[attr-defined]


SUMS = {"test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(1, 1) == 2\n", "entry_point": "add"}


@pytest.mark.parametrize(
    ("settings", "reference", "right", "passes"),
    [
        (Exact(), "42", "42", set()),
        (Exact(part="last_line"), "42", "42", set()),
        (Exact(part="boxed"), "42", "\\boxed{42}", set()),
        (Numeric(), "42", "42", {DENIAL}),  # it reads one number, whatever is said of it
        (Choice(), "B", "B", set()),
        (Json(), {"a": 1}, '{"a": 1}', set()),
        (Json(schema={"type": "object"}), None, '{"a": 1}', {"an empty object"}),
        (Regex(match="full"), "[0-9]+", "42", set()),
        (Regex(match="search"), "[a-z0-9]", "7", {"all that can be typed"}),
        (Sql(), {"query": "SELECT a FROM t", "scripts": ["CREATE TABLE t (a); INSERT INTO t VALUES (7);"]}, "SELECT a FROM t", set()),
    ],
)  # fmt: skip
def test_a_verifier_fails_its_own_cheats_but_for_what_is_said_of_it(settings: Any, reference: Any, right: str, passes: set[str]) -> None:
    task = Task(key="t", family="t", prompt=(Message(role="user", content="?"),), reference=reference)
    verifier, cheats = own(settings, task)
    try:
        verdicts = {
            kind: judge(task, loop.run(replay(task, SingleTurn(), (answer,))), verifier).outcome
            for kind, answer in {**cheats, "": right}.items()
        }
    finally:
        close(verifier)
    assert verdicts.pop("") == "pass"
    assert {kind for kind, outcome in verdicts.items() if outcome == "pass"} == passes and "error" not in verdicts.values()


def test_programs_that_set_out_to_pass_define_what_is_asked_for() -> None:
    verifier = CodeVerifier()
    for reference, name in (
        (SUMS, "add"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "same"}, "same"),
        ({"inputs": ["1"], "outputs": ["1"]}, "solution"),
    ):
        cheats = verifier.cheats(Task(key="t", family="t", reference=reference))
        assert len(cheats) == 5
        for text in cheats.values():
            tree = ast.parse(text.removeprefix("```python\n").removesuffix("\n```"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.real
def test_programs_that_set_out_to_pass_do_so_only_where_tests_and_code_are_together() -> None:
    task = Task(key="t", family="t", prompt=(Message(role="user", content="?"),), reference=SUMS)
    for settings, fooled_ in ((Code(), False), (Code(judge="together"), True)):
        verifier = CodeVerifier(settings)
        try:
            passed = {
                kind
                for kind, answer in verifier.cheats(task).items()
                if judge(task, loop.run(replay(task, SingleTurn(), (answer,))), verifier)
            }
        finally:
            close(verifier)
        assert bool(passed) == fooled_, passed


@pytest.mark.real
@pytest.mark.parametrize(
    ("verifier", "gameable", "sandboxed", "said"),
    [
        ({"verifier": "code", "judge": "together"}, True, True, "gameable: code and tests share an interpreter (judge: together)"),
        ({"verifier": "code", "sandbox": "none-i-trust-this-code"}, True, False, "not sandboxed: what it judges runs with your files"),
        ({"verifier": "any", "of": ["code", {"verifier": "code", "judge": "together"}]}, True, True, "gameable: code-"),
        ({"verifier": "all", "of": ["code", {"verifier": "code", "judge": "together"}]}, False, True, "note: gameable in part: code-"),
        ({"verifier": "code"}, False, True, ""),
    ],
)
def test_what_a_code_verifier_declares_is_in_the_audit_and_in_its_file(
    verifier: dict[str, Any], gameable: bool, sandboxed: bool, said: str, sandbox: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project(tmp_path, "", max_overlap=1)
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"tasks": settings["tasks"] | {"verifier": verifier, "splits": {"train": 1, "dev": 1}}}))
    rows = [
        {"prompt": f"Write {name}.", "reference": {"test": "def check(f):\n    assert f(1, 2) == 3", "entry_point": name}}
        for name in ("add", "plus")
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "work").mkdir()
    assert main(["audit", str(path), str(tmp_path / "work"), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert said in printed and any(line.startswith("gameable: ") for line in printed.splitlines()) == gameable
    found = json.loads((tmp_path / "work/audit.json").read_text())
    assert (bool(found["gameable"]), found["sandboxed"]) == (gameable, sandboxed)


def test_the_gate_hears_of_a_cheat_that_passes_and_not_of_what_may_be_right() -> None:
    assert fooled(taskset(last_word)) == ""
    assert fooled(taskset(somewhere)).startswith("every answer listed: task 't1': ")
    assert fooled(taskset(anything)).startswith("asks to be passed")
    assert fooled(taskset(somewhere, gold=False)) == ""  # nothing can be made of no answer
    cheated = taskset(last_word)
    object.__setattr__(cheated.verifier, "cheats", lambda task: {"mine": f"The answer is {task.reference}."})
    assert fooled(cheated).startswith("mine: task 't1'")


def test_no_labels_and_contradictory_ones_are_said_in_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, work = str(project(tmp_path, "good")), str(tmp_path / "work")
    (tmp_path / "work").mkdir()
    assert main(["audit", settings, work]) == 0
    assert f"there are no labels in {tmp_path / 'labels.jsonl'}; sharpen label {work} asks for them" in capsys.readouterr().out
    tasks = load_tasks(load_settings(Path(settings), {}).tasks)
    first, other = (
        loop.run(replay(task, tasks.environment, (task.reference,), agent="m"))
        for task in (tasks.tasks[0], replace(tasks.tasks[1], key="gone"))
    )
    for one, said, by in ((first, "good", "ann"), (first, "bad", "ann"), (first, "good", "bea"), (other, "good", "ann")):
        write_label(tmp_path / "labels.jsonl", replace(label(one, said), labeller=by))
    assert main(["audit", settings, work]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: 1 trajectories were called both good and bad by the same labeller; the last word counts" in lines
    assert "note: labellers disagree on 1 trajectories; most of them decide, and a tie is unsure" in lines
    assert "by labels (0 tries, 95 %): nothing can be said; 1 not used: errors, or nobody is sure" in lines
    assert "not looked at: 1 labelled trajectories are of no task of these settings and were left aside" in lines
