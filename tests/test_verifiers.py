"""Verdicts have three values, and a broken verifier never decides anything."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen import plugins
from sharpen.agents.checks import gold_and_noop
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import SettingsError, TaskError
from sharpen.records import Message, SampleKey, Stop, Task, Trajectory, Verdict
from sharpen.tasks.base import TaskSet
from sharpen.tasks.reasoning_gym import ReasoningGymScorer
from sharpen.verifiers.base import Verifier
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.run import judge, judge_many

KEY = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
TASK = Task(key="t", family="t", prompt=(Message(role="user", content="2 + 2 = ?"),), params={"gold": "4"}, reference="4")
SUM = Task(
    key="t",
    family="unknown",
    params={"origin": {"dataset": "chain_sum", "config": {}, "seed": 0, "size": 5}, "index": 0},
)


def tried(answer: str = "4", stop: Stop = "done", **outcome: Any) -> Trajectory:
    messages = (*TASK.prompt, Message(role="assistant", content=answer))
    return Trajectory(key=KEY, agent="m", messages=messages, stop=stop, outcome=outcome)


def same(answer: str, reference: str) -> bool:
    return answer == reference


VERIFIERS: list[tuple[Verifier, Task]] = [(EnvironmentOutcome(), TASK), (FunctionVerifier(same), TASK), (ReasoningGymScorer(), SUM)]


@pytest.mark.parametrize(("verifier", "task"), VERIFIERS, ids=["outcome", "function", "reasoning_gym"])
class TestEveryVerifier:
    @pytest.mark.parametrize("answer", ["", "no", "4" * 10_000, "\x00\u202e", "{" * 1000])
    def test_wrong_answers_never_pass_and_never_raise(self, verifier: Verifier, task: Task, answer: str) -> None:
        assert not judge(task, tried(answer), verifier)

    @pytest.mark.parametrize("stop", ["turn_limit", "token_limit", "overflow"])
    def test_running_out_is_the_policys_failure(self, verifier: Verifier, task: Task, stop: Stop) -> None:
        verdict = judge(task, tried("4", stop, won=True), verifier)
        assert (verdict.outcome, verdict.key, verdict.verifier) == ("fail", KEY, verifier.name)
        assert stop in verdict.reason

    @pytest.mark.parametrize("stop", ["error", "cancelled"])
    def test_broken_episodes_are_errors(self, verifier: Verifier, task: Task, stop: Stop) -> None:
        assert judge(task, replace(tried("4", stop, won=True), error="engine died"), verifier).outcome == "error"

    def test_a_conversation_without_an_answer_never_passes(self, verifier: Verifier, task: Task) -> None:
        assert not judge(task, replace(tried(), messages=()), verifier)

    def test_has_a_name_and_says_whether_it_is_exact(self, verifier: Verifier, task: Task) -> None:
        assert verifier.name
        assert verifier.exact in (True, False)


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ({"won": True}, "pass"),
        ({"success": True}, "pass"),
        ({"won": False, "score": 0.9}, "fail"),
        ({"won": "no"}, "fail"),
        ({"won": 1}, "fail"),
        ({}, "fail"),
    ],
)
def test_environment_outcome(outcome: dict[str, Any], says: str) -> None:
    verdict = EnvironmentOutcome().verify(TASK, tried(**outcome))
    assert verdict.outcome == says
    assert verdict.score == outcome.get("score")
    assert EnvironmentOutcome().verify(TASK, tried(stop="turn_limit", **outcome)).outcome == "fail"


@pytest.mark.parametrize(
    ("returned", "threshold", "says", "why"),
    [
        (True, None, "pass", ""),
        (False, None, "fail", ""),
        (0.9, 0.5, "pass", ""),
        (0.5, 0.5, "pass", ""),
        (0.1, 0.5, "fail", "under"),
        (3, 2, "pass", ""),
        (0.9, None, "error", "threshold"),
        (0, None, "error", "threshold"),
        (float("nan"), 0.5, "error", "NaN"),
        (None, None, "error", "NoneType"),
        ("yes", None, "error", "str"),
        (Verdict(key=replace(KEY, index=9), outcome="fail", reason="too long"), None, "fail", "too long"),
        (Verdict(key=KEY, outcome="error", reason="no judge"), None, "error", "no judge"),
        (Verdict(key=KEY, outcome="passed"), None, "error", "Invalid enum value 'passed'"),  # type: ignore[arg-type]
        (Verdict(key=KEY, outcome=True), None, "error", "got `bool` - at `$.outcome`"),  # type: ignore[arg-type]
        (Verdict(key=KEY, outcome="pass", score="high"), None, "error", "got `str` - at `$.score`"),  # type: ignore[arg-type]
        (Verdict(key=KEY, outcome="pass", score=object()), None, "error", "object"),  # type: ignore[arg-type]
        (Verdict(key=KEY, outcome="pass", reason=None), None, "error", "got `null` - at `$.reason`"),  # type: ignore[arg-type]
        (Verdict(key=KEY, outcome="pass", score=float("nan")), None, "error", "score nan"),
        (Verdict(key=KEY, outcome="pass", score=float("inf")), None, "error", "score inf"),
    ],
)
def test_what_a_function_may_return(returned: Any, threshold: float | None, says: str, why: str) -> None:
    def given(answer: str, reference: Any) -> Any:
        return returned

    verdict = judge(TASK, tried(), FunctionVerifier(given, "given", threshold=threshold))
    assert (verdict.outcome, verdict.verifier, verdict.key) == (says, "given", KEY)
    assert why in verdict.reason


def test_a_function_of_task_and_trajectory() -> None:
    def short(task: Task, trajectory: Trajectory) -> bool:
        return task.reference == "4" and len(trajectory.messages) < 5

    assert judge(TASK, tried(), FunctionVerifier(short)).outcome == "pass"


@pytest.mark.parametrize("fn", [lambda: True, lambda x: True, lambda text, gold: True, lambda reference, answer: True])
def test_other_parameters_are_refused(fn: Callable[..., bool]) -> None:
    with pytest.raises(SettingsError, match=r"\(answer, reference\) or \(task, trajectory\)"):
        FunctionVerifier(fn)


class Broken:
    name = "broken"
    exact = False

    def __init__(self, verify: Callable[[], Any]) -> None:
        self._verify = verify

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        return self._verify()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("verify", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: sys.exit(3), "SystemExit"),
        (lambda: True, "returned bool, not a Verdict"),
        (lambda: time.sleep(1), r"not back after 0.05 s"),
    ],
)
def test_a_broken_verifier_is_an_error(verify: Callable[[], Any], why: str) -> None:
    verdict = judge(TASK, tried(), Broken(verify), timeout_s=0.05)
    assert (verdict.outcome, verdict.verifier, bool(verdict)) == ("error", "broken", False)
    assert why in verdict.reason
    assert "\n" not in verdict.reason


def test_many_are_judged_at_once_and_given_in_order() -> None:
    """Four meet at the barrier or none goes on; what breaks the drawing of the tries is raised behind the verdicts under way."""
    meeting = threading.Barrier(4)

    def tries(count: int, then: Exception | None = None) -> Iterator[tuple[Task, Trajectory]]:
        for index in range(count):
            yield TASK, replace(tried(), key=replace(KEY, index=index))
        if then is not None:
            raise then

    def verify() -> Verdict:
        meeting.wait(60)
        return Verdict(key=KEY, outcome="pass")

    judged = judge_many(tries(8), Broken(verify), at_once=4)
    assert [(trajectory.key.index, verdict.key.index, bool(verdict)) for trajectory, verdict in judged] == [(i, i, True) for i in range(8)]
    judged = judge_many(tries(4, then=TaskError("gone")), Broken(verify), at_once=4)
    assert [next(judged)[0].key.index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(TaskError, match="gone"):
        next(judged)


def test_a_question_that_can_no_longer_be_made_is_an_error() -> None:
    assert "no longer makes" in judge(SUM, tried(), ReasoningGymScorer()).reason


def test_functions_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef grade(answer, reference):\n    return True\n")
    assert plugins.load(f"{path}:grade", "verifier")("", "") is True
    assert plugins.load("operator:eq", "verifier") is not None
    for spec, why in {
        f"{path}:grad": "did you mean 'grade'",
        f"{tmp_path}/none.py:f": "no file",
        "no.such.module:f": "ModuleNotFoundError",
        "nocolon": "neither module:name, file.py:name nor an entry point in the group sharpen.verifiers",
    }.items():
        with pytest.raises(SettingsError, match=why):
            plugins.load(spec, "verifier")


def test_names_from_one_file_share_its_state_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "counter.py"
    code = "seen = []\ndef put(answer, reference):\n    seen.append(answer)\ndef size(answer, reference):\n    return len(seen)\n"
    path.write_text(code)
    plugins.load(f"{path}:put", "tool")("a", None)
    assert plugins.load(f"{path}:size", "tool")("", None) == 1
    path.write_text(code.replace("len(seen)", "-1"))
    assert plugins.load(f"{path}:size", "tool")("", None) == -1


def test_functions_that_an_installed_package_offers_are_found_by_their_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graders.py").write_text("def grade(answer, reference):\n    return True\n")
    info = tmp_path / "graders-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: graders\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sharpen.verifiers]\nlenient = graders:grade\nbroken = no_such_module:f\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load("lenient", "verifier")("", "") is True
    for name, why in {"lenint": "did you mean 'lenient'", "broken": "ModuleNotFoundError"}.items():
        with pytest.raises(SettingsError, match=why):
            plugins.load(name, "verifier")


# ---------------------------------------------------------------- gold and no-op checks


def taskset(fn: Callable[..., Any] | None, **task: Any) -> TaskSet:
    tasks = tuple(replace(TASK, key=str(n), split=split, **task) for n, split in enumerate(["train"] * 30 + ["test"]))
    return TaskSet("sums", tasks, SingleTurn(), FunctionVerifier(fn) if fn else None)


async def test_a_good_verifier_passes_its_checks() -> None:
    checks = await gold_and_noop(taskset(same), limit=10)
    assert (checks.gold_tried, checks.gold_passed, checks.noop_tried, checks.noop_failed) == (10, 10, 20, 20)
    assert (checks.gold_passes, checks.noop_fails, checks.example) == (True, True, "")


async def test_a_verifier_that_takes_anything_is_caught() -> None:
    def anything(answer: str, reference: str) -> bool:
        return True

    checks = await gold_and_noop(taskset(anything))
    assert (checks.gold_passes, checks.noop_fails) == (True, False)
    assert checks.example == "task '0': an empty answer got pass"


async def test_a_verifier_that_fails_the_gold_is_caught() -> None:
    def never(answer: str, reference: str) -> bool:
        return False

    checks = await gold_and_noop(taskset(never))
    assert (checks.gold_passes, checks.noop_fails) == (False, True)
    assert "the gold solution '4' got fail" in checks.example


async def test_a_raising_verifier_satisfies_neither_check() -> None:
    def broken(answer: str, reference: str) -> bool:
        raise RuntimeError("no licence")

    checks = await gold_and_noop(taskset(broken))
    assert (checks.gold_passes, checks.noop_fails) == (False, False)
    assert "no licence" in checks.example


async def test_no_gold_is_unknown_not_false() -> None:
    assert (await gold_and_noop(taskset(same, params={}))).gold_passes is None


async def test_a_set_without_a_verifier_cannot_be_checked() -> None:
    with pytest.raises(TaskError, match="no verifier"):
        await gold_and_noop(taskset(None))
