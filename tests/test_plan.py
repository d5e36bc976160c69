"""``--plan``: what it counts is what the run then does, and what it makes to measure is not made again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import FEW
from sharpen import lengths
from sharpen.chat.scripted import ScriptedTemplate
from sharpen.cli import main
from sharpen.environments.base import Step
from sharpen.errors import EnvironmentFault, SettingsError
from sharpen.models import load_model
from sharpen.plan import Plan, Typical, ahead, plan
from sharpen.policies.meter import Bill
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Message, Model, Task
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.stats import families_needed, smallest_effect
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks

ALL = {
    "ladder.alpha": "0.9999",
    "ladder.rounds": "1",
    "tasks.splits": "{demo: 6, train: 20, dev: 20, test: 4}",
}  # so easily satisfied that every rung is kept


# ---------------------------------------------------------------- what is opened


class World:
    """An environment that opens as a test says, and counts what is open."""

    name, max_turns = "world", 3

    def __init__(self, opens: Callable[[Task], Awaitable[str]], tools: tuple[dict[str, Any], ...] = ()) -> None:
        self._opens, self.tools, self.started, self.open = opens, tools, 0, 0

    async def start(self, task: Task) -> tuple[World, tuple[Message, ...]]:
        self.started += 1
        said = await self._opens(task)
        self.open += 1
        return self, (Message(role="user", content=said),)

    async def step(self, message: Message) -> Step:
        raise AssertionError("a plan takes no turn")

    async def close(self) -> None:
        self.open -= 1

    def expert(self, task: Task) -> None:
        return None


async def at_once(task: Task) -> str:
    return "You stand in a room."


def world(environment: World, words: str = "Go.", many: int = 40) -> TaskSet:
    prompt = (Message(role="user", content=words),) if words else ()
    tasks = [Task(key=str(at), family=str(at), split="dev", prompt=prompt) for at in range(many)]
    return TaskSet("world", tuple(tasks), environment, None)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    scripted_model(tmp_path / "base", skill=0.5)
    return load_model(str(tmp_path / "base"))


SERVED = Model(name="served", path="https://llm.example.invalid/v1", kind="endpoint", fingerprint="0", lineage=Lineage(base="served"))


def test_a_first_prompt_is_counted_with_its_tools_and_nothing_stays_open(model: Model) -> None:
    huge = tuple(
        {"type": "function", "function": {"name": f"tool{at}", "description": "x" * 5000, "parameters": {"type": "object"}}}
        for at in range(40)
    )
    environment = World(at_once, huge)
    for which, prompt in (
        (model, ScriptedTemplate().prompt((Message(role="user", content="You stand in a room."),), (), huge)),
        (SERVED, ()),
    ):
        found = lengths.measure(world(environment), which, None, 32)
        assert found.opening == found.longest == (len(prompt) or pytest.approx(200_000 / 3, rel=0.1))
    assert environment.started == 2 * 16 and environment.open == 0
    assert "3 characters taken for a token" in found.said[0]


def test_a_long_opening_is_bounded_for_all_but_expected_only_of_some(model: Model) -> None:
    async def opens(task: Task) -> str:
        return "x" * (1_000_000 if task.key == "0" else 100)

    found = lengths.measure(world(World(opens)), model, None, 32)
    assert 1_000_000 < found.longest < 1_000_100 and found.opening < found.longest / 10
    assert found.answered > 1_000_000, "the longest that was seen of it, since it states no limit"
    assert any(line.startswith("trusted: what the environment answers") for line in found.said)


@pytest.mark.parametrize("words", ["Go on.", ""])
def test_what_does_not_open_is_said_and_done_without(model: Model, words: str) -> None:
    async def fails(task: Task) -> str:
        raise EnvironmentFault("no licence") if int(task.key) % 2 else ValueError("nor\na reason")

    found = lengths.measure(world(World(fails), words), model, None, 32)
    assert found.longest == (len(ScriptedTemplate().prompt((Message(role="user", content=words),))) if words else 0)
    assert found.said[0].startswith("not opened: 16 of 16 tasks tried (ValueError: nor a reason)")


@pytest.mark.parametrize("blocks", [False, True])
def test_what_hangs_is_waited_for_a_while(model: Model, monkeypatch: pytest.MonkeyPatch, blocks: bool) -> None:
    monkeypatch.setattr(lengths, "OPENING_S", 0.05)
    monkeypatch.setattr(lengths, "CLOSING_S", 0.05)
    released = threading.Event()

    async def hangs(task: Task) -> str:
        if task.key != "0":
            released.wait() if blocks else await asyncio.Event().wait()  # the one holds up the whole loop
        return "opened"

    environment = World(hangs)
    try:
        found = lengths.measure(world(environment), model, None, 32)
    finally:
        released.set()
    assert found.longest > 0 and (blocks or environment.started == 2)
    assert any("tasks tried (all had to open within 0.05 s)" in line for line in found.said)


def test_a_plan_goes_on_without_an_environment_that_breaks(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world.py").write_text(
        "class Broken:\n    def reset(self): raise RuntimeError('out of order')\n    def go(self) -> str: 'Go.'\n"
    )
    rows = [{"prompt": asked(at), "reference": str(2 * at)} for at in range(12)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = yaml.safe_load(scripted.read_text())
    data["tasks"] = {"source": "jsonl", "path": str(tmp_path / "tasks.jsonl"), "verifier": "exact", "splits": {"dev": 8}, "max_overlap": 1}
    data["tasks"]["environment"] = {"environment": "object", "factory": f"{tmp_path}/world.py:Broken"}
    scripted.write_text(yaml.safe_dump(data | {"ladder": {"rungs": []}}))
    assert main(["run", str(scripted), "--runs", str(tmp_path / "runs"), "--plan", "--measure", "0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not opened: 8 of 8 tasks tried (EnvironmentFault: task" in said and "out of order" in said and "at most is no bound" in said
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the plan and the bill


def held(planned: Plan, folder: Path, factor: float) -> Bill:
    """No stage took more than the plan said it could, and the whole no less than what was expected divided by ``factor``."""
    most = {stage.name: spent for stage, spent, _ in planned.bounds}
    bill = read_json(folder / "spent.json", Bill)
    for name, took in bill.stages.items():
        bound = most.get(name) or (most["what ships/test"] if name.endswith("/test") else None)
        assert bound is not None, name
        assert took.calls <= bound.calls and took.sampled_tokens <= bound.sampled_tokens, name
        assert took.prompt_tokens <= bound.prompt_tokens, name
    for stage, spent, _ in planned.stages:
        if (took := bill.stages.get(stage.name)) is not None:
            assert took.prompt_tokens / factor < spent.prompt_tokens < factor * took.prompt_tokens, stage.name
    assert bill.total.tokens <= planned.most.tokens
    return bill


@pytest.mark.parametrize("given", [{}, {"few_shot.shots": "6"}])
def test_no_stage_takes_more_than_an_unmeasured_plan_says(scripted: Path, tmp_path: Path, given: dict[str, str]) -> None:
    settings = load_settings(scripted, ALL | {"evaluation.max_n": "4", "ladder.retries": "0", "ladder.rungs": "[few-shot, sft]"} | given)
    planned = plan(settings, tmp_path / "runs", measure=0)
    climb(settings, tmp_path / "runs")
    held(planned, tmp_path / "runs/ladder", factor=2)


TOOLS = """
def look_up(what: str) -> str:
    \"\"\"Look something up.

    Args:
        what: What to look up.
    \"\"\"
    return f"{what}: " + "nothing is known of it. " * 400


def expert(task):
    return [{"tool_calls": [{"name": "look_up", "arguments": {"what": "sums"}}]}, str(task.reference)]
"""
LOOK = '<tool_call>\n{"name": "look_up", "arguments": {"what": "sums"}}\n</tool_call>'


def asked(number: int) -> str:
    return f"What is {number} + {number}?"


@pytest.mark.parametrize("expert", [True, False])
def test_at_most_holds_where_tools_answer_at_length(model: Model, tmp_path: Path, expert: bool) -> None:
    """A model that calls a tool twice a turn, for as long as it may."""
    learned = {hashlib.sha256(asked(at).encode()).hexdigest()[:16]: f"{LOOK}\n{LOOK}" for at in range(24)}
    Path(model.path, "scripted.json").write_text(json.dumps({"skill": 0.5, "learned": learned}))
    (tmp_path / "kit.py").write_text(TOOLS)
    rows = [{"prompt": asked(at), "reference": str(2 * at)} for at in range(24)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment: dict[str, object] = {"environment": "tools", "functions": [f"{tmp_path}/kit.py:look_up"], "max_turns": 4}
    environment |= {"expert": f"{tmp_path}/kit.py:expert"} if expert else {}
    tasks = {"source": "jsonl", "path": str(tmp_path / "tasks.jsonl"), "verifier": "exact", "environment": environment, "max_overlap": 1}
    given = {"model": model.path, "tasks": tasks | {"splits": {"demo": 4, "train": 8, "dev": 8}}, "name": "ladder"}
    given |= {"evaluation": {"n": 2, "k": [1], "max_tokens": 256}, "ladder": {"rungs": ["few-shot"] if expert else []}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(given))
    settings = load_settings(tmp_path / "r.yaml", {})
    planned = plan(settings, tmp_path / "runs", measure=0)
    assert any("each answered with max_chars (4000) characters" in line for line in planned.said)
    climb(settings, tmp_path / "runs")
    took = held(planned, tmp_path / "runs/ladder", factor=8).stages["rungs/000-base/dev"]
    assert took.calls == 8 * 2 * 4, "every try to its last turn"


def test_at_most_holds_for_a_text_game(model: Model, tmp_path: Path) -> None:
    tasks = {"source": "textworld", "splits": {"demo": 4, "train": 4, "dev": 6}}
    given = {"model": model.path, "tasks": tasks, "evaluation": {"n": 2, "k": [1], "max_tokens": 32}, "name": "ladder"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**given, "ladder": {"rungs": []}}))
    settings = load_settings(tmp_path / "r.yaml", {})
    planned = plan(settings, tmp_path / "runs", measure=0)
    climb(settings, tmp_path / "runs")
    held(planned, tmp_path / "runs/ladder", factor=5)


# ---------------------------------------------------------------- stages and tries


def test_the_stages_and_tries_of_a_plan_are_those_of_the_run(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, ALL)
    planned = plan(settings, tmp_path / "runs")
    assert all(stage.done is None for stage, _, _ in planned.stages)
    climb(settings, tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    made = {str(path.parent.relative_to(folder)): read_json(path.parent / "stage.json", dict) for path in folder.rglob(MANIFEST)}
    shipped = next(name for name in made if name.endswith("/test") and "base" not in name)
    sure = [stage for stage, _, _ in planned.stages if stage.tries or stage.rows]  # else they are only in what it takes at most
    names = {shipped if stage.name == "what ships/test" else stage.name: stage.tries for stage in sure}
    assert set(names) == set(made) - {"demonstrations"}
    bill = read_json(folder / "spent.json", Bill)
    assert {name: tries for name, tries in names.items() if tries} == {name: spent.calls for name, spent in bill.stages.items()}
    assert planned.expected.calls == bill.total.calls
    assert planned.expected.prompt_tokens + planned.expected.sampled_tokens == pytest.approx(bill.total.tokens, rel=0.5)
    assert bill.total.tokens <= planned.most.tokens
    again = plan(settings, tmp_path / "runs")
    assert again.expected.calls == sum(stage.tries for stage, _, _ in again.stages if stage.done is None)
    assert sum(stage.done is not None for stage, _, _ in again.stages) == len(names) - 1  # "what ships" is known only at the end


def test_what_a_plan_measures_the_run_finds_made(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW})
    plan(settings, tmp_path / "runs", measure=7)
    bill = tmp_path / "runs/ladder/spent.json"
    assert read_json(bill, Bill).total.calls == 8
    plan(settings, tmp_path / "runs", measure=7)
    assert read_json(bill, Bill).total.calls == 8
    climb(settings, tmp_path / "runs")
    assert read_json(bill, Bill).total.calls == 12 * 4 + 4 * 4


def test_a_plan_of_a_run_that_was_never_planned_goes_by_what_it_did(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW}), tmp_path / "runs")
    bill = (tmp_path / "runs/ladder/spent.json").read_bytes()
    ledger = (tmp_path / "runs/ladder/ledger.jsonl").read_bytes()
    more = plan(load_settings(scripted, {"ladder.rungs": "[sft]", "tasks.splits": FEW}), tmp_path / "runs")
    (dev,) = (stage.done for stage, _, _ in more.stages if stage.name == "rungs/000-base/dev")
    assert dev is not None
    ahead = [spent for stage, spent, _ in more.stages if stage.name == "rungs/001-sft/dev"]
    assert ahead[0].seconds == pytest.approx(ahead[0].sampled_tokens * dev.inside_s / dev.sampled_tokens, rel=0.01)
    assert (tmp_path / "runs/ladder/spent.json").read_bytes() == bill and (tmp_path / "runs/ladder/ledger.jsonl").read_bytes() == ledger


def test_without_measuring_nothing_is_made_and_minutes_are_unknown(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scripted), "--runs", str(tmp_path / "runs"), "--plan", "--measure", "0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "runs").exists()
    assert "unknown" in out and "--measure 16 makes so many of the run's first tries" in out


def test_an_endpoint_of_unknown_price_is_planned_without_asking_it_and_says_so(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(scripted.read_text())
    data |= {"model": "https://llm.example.invalid/v1#nobody-knows", "ladder": {"rungs": []}}
    scripted.write_text(yaml.safe_dump(data))
    assert main(["run", str(scripted), "--runs", str(tmp_path), "--plan"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "unknown: genai-prices" in out and "spending.prices.nobody-knows" in out and "$" not in out
    data["spending"] = {"prices": {"nobody-knows": {"prompt": 1, "sampled": 10}}, "max_dollars": 0.001}
    scripted.write_text(yaml.safe_dump(data))
    assert main(["run", str(scripted), "--runs", str(tmp_path), "--plan"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "as set in spending.prices; 1 and 10 dollars" in out and "$0.1" in out
    assert "spending.max_dollars is 0.001: the run will stop there" in out


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"sampling.n": "1", "sampling.temperature": "0.5"}, 0),  # one try passes or fails
        ({"sampling.n": "3"}, 10 * 2 * 2),  # a pass and two fails
        ({}, 10 * 4 * 2),
        ({"preference.epochs": "3", "training.epochs": "2"}, 10 * 4 * 2 * 3 / 2),
        ({"preference.pairs.per_task": "1"}, 10 * 2),
        ({"sampling.n": "2", "sampling.budget": "{budget: adaptive, first: 1}"}, 10 * 4 * 2),
        ({"ladder.rungs": "[rejection-sampling, expert-iteration]", "ladder.rounds": "2"}, 2 * 10 * 4 * 2),  # no more than ladder.retries
    ],
)
def test_a_round_of_negatives_trains_both_rows_of_every_pair(scripted: Path, given: dict[str, str], rows: float) -> None:
    only = {
        "ladder.rungs": "[rejection-sampling]",
        "ladder.ways": "[negatives]",
        "training.epochs": "1",
        "tasks.splits": "{train: 10, dev: 4}",
    }
    settings = load_settings(scripted, only | given)
    typical = Typical(tries=1, calls=1, prompt=1, sampled=1, row=1, passes=0.2, rate=1)
    stages = list(ahead(settings, load_tasks(settings.tasks), None, typical))
    assert sum(stage.more_rows for stage in stages) == rows


def test_flags_that_do_not_go_together(scripted: Path) -> None:
    for flags in (["--measure", "3"], ["--plan", "--measure", "-1"], ["--plan", "--fork", "new"]):
        assert main(["run", str(scripted), *flags]) == 2


def test_a_design_too_small_is_said_before_anything_is_sampled(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError):  # stopped by the cap at its first call
        climb(load_settings(scripted, {"spending.max_tokens": "1", "ladder.retries": "0"}), tmp_path / "runs")
    said = " ".join(capsys.readouterr().err.split())
    assert "dev: 40 families, 40 tasks, 4 tries each show a gain of about 24 points or more" in said
    assert "takes about 2524 families" in said
    with pytest.raises(SettingsError):
        climb(load_settings(scripted, {"spending.max_tokens": "1", "ladder.delta": "0.5", "name": "easy"}), tmp_path / "runs")
    assert "four times in five" not in capsys.readouterr().err


def test_the_smallest_effect_is_that_of_the_paper() -> None:
    """2411.00640's own example: 0.03 at 95 % and power 0.8 takes 969 questions, with ever more tries of each."""
    assert families_needed(0.03, 1, 10**9, 0.95) == 969
    assert smallest_effect(969, 969, 10**9, 0.95) == pytest.approx(0.03, abs=1e-4)
    assert smallest_effect(100, 400, 4, 0.95) < smallest_effect(100, 100, 4, 0.95)
    assert smallest_effect(0, 0, 4, 0.95) != smallest_effect(0, 0, 4, 0.95)
