"""What SFT copies of whoever demonstrates, and what leaving known faults out does, on scripted ladders in which it can be known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharpen.behaviour import kept_out
from sharpen.errors import SettingsError
from sharpen.ladder import LadderSettings
from sharpen.plan import plan
from sharpen.policies.meter import Bill
from sharpen.policies.scripted import scripted_model
from sharpen.records import Filtered, Message, SampleKey, Trajectory
from sharpen.report.page import RungView
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import RunSettings, load_settings
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST
from sharpen.verifiers.behaviour import Rules

SUMS = """
from sharpen.environments.base import Step
from sharpen.environments.text_game import CANNOT
from sharpen.records import Message, Task
from sharpen.tasks.base import TaskSet
from sharpen.verifiers.outcome import EnvironmentOutcome

class Sum:
    tools = ()
    def __init__(self, task):
        self.task, self.left, self.moves = task, 4, 0
    async def step(self, message):
        self.left -= 1
        won = message.content.strip() == str(sum(self.task.params["of"]))
        self.moves += won
        over = won or not self.left
        told = () if over else (Message(role="user", content=CANNOT + " " + asked(self.task)),)
        outcome = {"won": won, "lost": False, "out_of_turns": over and not won, "moves": self.moves}
        return Step(messages=told, action=message.content, done=over, outcome=outcome)
    async def close(self):
        pass

class Sums:
    max_turns = 4
    def __init__(self, stumbles, silent):
        self.name, self.stumbles, self.silent = f"sums-{stumbles}-{silent}", stumbles, silent
    async def start(self, task):
        return Sum(task), (Message(role="user", content=asked(task)),)
    def expert(self, task):
        right = str(sum(task.params["of"]))
        if int(task.key[1:]) < self.silent:
            return None
        return ("no idea", right) if self.stumbles else (right,)

def asked(task):
    return "Calculate {} + {}.".format(*task.params["of"])

def task(at, split):
    of = [at, 2 * at + 1]
    asked = Message(role="user", content="Calculate {} + {}.".format(*of))
    return Task(key=f"s{at}", family=f"s{at}", split=split, prompt=(asked,), params={"of": of})

def make(demo, train, dev, stumbles=False, silent=0):
    splits = ["demo"] * demo + ["train"] * train + ["dev"] * dev
    tasks = tuple(task(at, split) for at, split in enumerate(splits))
    return TaskSet("sums", tasks, Sums(stumbles, silent), EnvironmentOutcome())
"""


def settings_of(folder: Path, rungs: list[str], tasks: dict[str, Any], skill: float = 0.2, **more: Any) -> RunSettings:
    (folder / "sums.py").write_text(SUMS)
    scripted_model(folder / "student", skill=skill)
    data = {
        "name": "sums",
        "seed": 3,
        "model": str(folder / "student"),
        "tasks": {"source": "plugin", "name": f"{folder / 'sums.py'}:make", "settings": tasks},
        "sampling": {"n": 4, "max_tokens": 32},
        "evaluation": {"n": 2, "k": [1], "max_tokens": 32},
        **more,
        "ladder": {"rungs": rungs, "control": False, "retries": 0, **more.get("ladder", {})},
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump(data))
    return load_settings(folder / "sums.yaml", {})


def climbed(folder: Path, *given: Any, **more: Any) -> dict[str, RungView]:
    climb(settings_of(folder, *given, **more), folder / "runs")
    return {rung.name: rung for rung in read_run(folder / "runs/sums").rungs}


def page_of(folder: Path) -> str:
    return " ".join((folder / "runs/sums/report.html").read_text().split())


# ---------------------------------------------------------------- what SFT copies of its demonstrators


def test_a_student_that_stumbles_as_its_demonstrator_does_is_seen_to(tmp_path: Path) -> None:
    """The demonstrator says something that is refused before every right answer; the student was right at once where it was right at all."""
    found = climbed(tmp_path, ["few-shot", "sft"], {"demo": 24, "train": 1, "dev": 4, "stumbles": True}, skill=1.0)["002-sft"]
    copied, faults = found.transfer, found.faults
    assert copied is not None and copied.trained == 24
    refused = {role: getattr(copied, role).measures["refused"].value for role in ("teacher", "before", "after")}
    assert refused == {"teacher": 0.5, "before": 0.0, "after": pytest.approx(0.5, abs=0.25)}
    assert copied.before.tries == copied.after.tries == 24 and copied.gain.printed.n == 24
    shift = {one.measure: one for one in copied.shifts}["refused"]
    assert shift.from_before.low > 0
    assert faults is not None and [one.other for one in faults.same] == ["before"]
    page = page_of(tmp_path)
    for words in ("At 24 demonstrated tasks, all of which", "what was copied, not how well", "The demonstrator, expert,"):
        assert words in page, words
    assert "teacher expert, pass@1" not in page  # its rate is at other tasks than those that the ladder's chart shows


def test_the_student_is_tried_as_planned_and_paid(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ["sft"], {"demo": 5, "train": 1, "dev": 4}, ladder={"demo_tries": 2})
    planned = plan(settings, tmp_path / "runs", measure=0)
    climb(settings, tmp_path / "runs")
    run = tmp_path / "runs/sums"
    ahead = {stage.name: stage.tries for stage, _, _ in planned.stages if stage.tries}
    assert ahead["rungs/000-base/demo"] == ahead["rungs/001-sft/demo"] == 10
    assert {str(path.parent.relative_to(run)) for path in run.rglob(MANIFEST)} - {"demonstrations"} == {*ahead, "rungs/001-sft"}
    assert set(read_json(run / "spent.json", Bill).stages) == set(ahead)
    rung = read_run(run).rungs[1]
    assert rung.transfer is not None and (rung.transfer.teacher.tries, rung.transfer.after.tries, rung.transfer.trained) == (5, 10, 5)
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl") if path.name != "ledger.jsonl"}
    climb(settings, tmp_path / "runs")
    assert stamps == {path: path.stat().st_mtime_ns for path in run.rglob("*.jsonl") if path.name != "ledger.jsonl"}


def test_tasks_that_nobody_demonstrates_are_not_played_and_those_that_train_nothing_are_told_apart(tmp_path: Path) -> None:
    tasks = {"demo": 6, "train": 1, "dev": 4, "silent": 2}
    by_expert = climbed(tmp_path, ["sft"], tasks)["001-sft"].transfer
    assert by_expert is not None and (by_expert.after.tasks, by_expert.after.tries, by_expert.trained) == (4, 4, 4)
    asked = [f"Calculate {at} + {2 * at + 1}." for at in range(5)]  # nobody recorded the sixth
    tries = zip(asked, ["1", "4", "7", "wrong", "13"], strict=True)
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in tries]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settled = {"teacher": "ann", "licence": "MIT", "settled_by": "ann", "settled_on": "2026-01-02", "evidence": "https://example.org/ann"}
    shown = {"demonstrations": {"path": str(tmp_path / "traces.jsonl")}, "terms": [{**settled, "known_as": ["imported"]}]}
    climb(settings_of(tmp_path, ["sft"], tasks, **shown), tmp_path / "recorded")
    found = read_run(tmp_path / "recorded/sums").rungs[1].transfer
    assert found is not None and (found.after.tasks, found.trained, found.teacher.tries) == (5, 4, 5)
    assert "At 5 demonstrated tasks, 4 of which trained the student" in " ".join(
        (tmp_path / "recorded/sums/report.html").read_text().split()
    )


def test_switched_off_nothing_is_played_nothing_decided_otherwise_and_the_page_says_how_to_switch_it_on(tmp_path: Path) -> None:
    found = climbed(tmp_path, ["sft"], {"demo": 4, "train": 1, "dev": 4}, ladder={"demo_tries": 0})["001-sft"]
    assert found.transfer is None and found.faults is None and not list((tmp_path / "runs").rglob("rungs/*/demo"))
    assert "ladder.demo_tries" in page_of(tmp_path) and "What was transferred" not in page_of(tmp_path)
    (tmp_path / "on").mkdir()
    assert climbed(tmp_path / "on", ["sft"], {"demo": 4, "train": 1, "dev": 4})["001-sft"].decision == found.decision is not None
    with pytest.raises(SettingsError, match="demo_tries is -1"):
        LadderSettings(demo_tries=-1)
    with pytest.raises(SettingsError, match=r"demo_tries is 1000000000000, .* makes 2 of a task"):
        settings_of(tmp_path, ["sft"], {}, ladder={"demo_tries": 10**12})


# ---------------------------------------------------------------- what leaving known faults out does

NEVER_WRONG = {"selection": {"behaviour": {"errors": 0}, "cap": 4}}


def effect(rung: RungView) -> tuple[Filtered, dict[str, float]]:
    assert rung.filtered is not None and len(rung.filtered.rates) == 1
    return rung.filtered, {role: share.value for role, share in rung.filtered.rates[0].shares.items()}


def test_a_filter_whose_student_shows_less_of_the_fault_is_shown_with_its_numbers(tmp_path: Path) -> None:
    found = climbed(tmp_path, ["rejection-sampling"], {"demo": 4, "train": 80, "dev": 40}, **NEVER_WRONG)["001-rejection-sampling"]
    made, shares = effect(found)
    assert list(shares) == ["sampled", "passing", "trains", "before", "after"]
    assert shares["sampled"] > shares["passing"] > shares["trains"] == 0.0
    assert shares["before"] > 0.6 > shares["after"] and made.rates[0].change.high < 0 and made.rates[0].change.n == 40
    assert (made.base, made.other) == ("rungs/000-base", "rungs/001-rejection-sampling")
    page = page_of(tmp_path)
    for words in ("an act that went wrong, more than 0 times", "surely less", "a run without it"):
        assert words in page, words


def test_a_filter_whose_student_shows_as_much_of_the_fault_is_shown_as_that(tmp_path: Path) -> None:
    """Three games teach it next to nothing: what was left out is gone from the rows and not from the student."""
    found = climbed(tmp_path, ["sft"], {"demo": 3, "train": 1, "dev": 20}, **NEVER_WRONG)["001-sft"]
    made, shares = effect(found)
    assert shares["sampled"] == shares["passing"] == shares["trains"] == 0.0  # the demonstrations'
    assert shares["before"] > 0.5 < shares["after"] and not made.rates[0].change.high < 0
    assert "not surely changed" in page_of(tmp_path) and "surely less" not in page_of(tmp_path)


def test_without_rules_there_is_no_such_table(tmp_path: Path) -> None:
    found = climbed(tmp_path, ["sft"], {"demo": 3, "train": 1, "dev": 4}, selection={"behaviour": {}})["001-sft"]
    assert found.filtered is None and "Known faults are left out" not in page_of(tmp_path)


def test_shares_are_means_over_tasks_of_tries_that_nothing_broke() -> None:
    def tried(task: str, index: int, said: str, stop: str = "done") -> Trajectory:
        key = SampleKey(model="m", task=task, environment="e", sampling="s", index=index)
        return Trajectory(key=key, agent="m", messages=(Message(role="assistant", content=said),), stop=stop)  # type: ignore[arg-type]

    many = [*(tried("a", at, "") for at in range(9)), tried("b", 0, "x"), tried("c", 0, "", "error")]
    (found,) = kept_out(Rules(empty=0), {"sampled": many, "trains": [], "before": many, "after": [tried("a", 0, "x")]}, {"a": "f"})
    assert found.fault == "a turn that says nothing, more than 0 times" and found.shares["sampled"].value == 0.5
    assert found.shares["trains"].n == 0 and found.change.value == -1.0
    assert kept_out(Rules(), {"before": many, "after": many}, {}) == ()
