"""The hand-over to RL: what ``rl/`` holds of a run, whether RL is justified, and the forms that TRL and verifiers take."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from msgspec.structs import replace

import sharpen
from conftest import LADDER
from sharpen import advisor
from sharpen.advice import advise
from sharpen.agents.base import PolicyAgent
from sharpen.agents.proxy import Calls, serve
from sharpen.audit import CHECKED, Checked
from sharpen.chat.scripted import END_ID, ScriptedTemplate
from sharpen.environments.load import load_environment
from sharpen.environments.object import Object
from sharpen.environments.tools import Functions, ToolProblem
from sharpen.errors import ModelError, PolicyError, Refused, RunError, SettingsError, Stopped, TooManyErrors
from sharpen.handoff.folder import KINDS, Counted, Given, choose, given, hand_over, try_to_hand_over
from sharpen.handoff.grpo import Scores, _Played, _reward, _rewards, parts
from sharpen.handoff.justify import Headroom, justify
from sharpen.handoff.taskset import play, rows
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.meter import Bill, Meter, Spending
from sharpen.policies.scripted import ScriptedPolicy, scripted_model
from sharpen.records import (
    Decision,
    Evaluation,
    Goal,
    Interval,
    Measurements,
    Message,
    Option,
    Purity,
    SampleKey,
    Task,
    TaskResult,
    Trajectory,
    Tried,
    Verdict,
)
from sharpen.report.page import RungView
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.stats import pass_interval
from sharpen.store.files import read_json, write_json
from sharpen.store.run import Run
from sharpen.store.segments import Segments
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.judge import LLMJudge
from sharpen.verifiers.run import judge
from test_choose import GOAL, PLATEAU, SAMPLED, WORKED, round_
from test_judge import PASS, answering
from test_paid_judge import THREE


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high, n=40)


PURE = Purity(rows=90, good=40, bad=0, unsure=0, share=interval(1.0, 0.93, 1.0), bar=0.9, outcome="clears", missing=0)
SEEN = Headroom(
    k=8, pass_1=interval(0.4, 0.35, 0.45), pass_k=interval(0.7, 0.6, 0.8), gap=interval(0.3, 0.25, 0.35), tries=8, by="", solved=20,
    mixed=50, never=30, graded=0, unmeasured=0, bound=0.31, verifier="v", exact=True, prompt_tokens=100, sampled_tokens=20, seconds=0.5,
)  # fmt: skip


TRAIN = 12
TASKS = {**LADDER["tasks"], "splits": {"demo": 6, "train": TRAIN, "dev": 10}}  # type: ignore[dict-item]
SMALL = {**LADDER, "tasks": TASKS, "ladder": {"rungs": ["few-shot", "sft", "rejection-sampling"], "control": False, "retries": 0}}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, handed over by ``sharpen run`` itself. Nobody changes it."""
    folder = tmp_path_factory.mktemp("handoff")
    scripted_model(folder / "base", skill=0.2)
    settings = folder / "ladder.yaml"
    settings.write_text(yaml.safe_dump({**SMALL, "model": str(folder / "base")}))
    climb(load_settings(settings, {}), folder / "runs")
    return folder / "runs" / "ladder"


@pytest.fixture
def run(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with the working directory put back afterwards."""
    monkeypatch.chdir(Path.cwd())  # reading a hand-over changes it
    return Path(shutil.copytree(ended, tmp_path / "ladder"))


def lines(run: Path, kind: str) -> list[Counted]:
    path = run / "rl" / "tasks" / f"{kind}.jsonl"
    assert not path.exists() or path.stat().st_size, "datasets cannot read an empty file"
    return [msgspec.json.decode(line, type=Counted) for line in path.read_bytes().splitlines()] if path.exists() else []


# ---------------------------------------------------------------- the folder


def test_a_run_that_ends_is_handed_over(ended: Path) -> None:
    by_kind = {kind: lines(ended, kind) for kind in KINDS}
    everything = [line for kind in KINDS for line in by_kind[kind]]
    assert len(everything) == len({line.task for line in everything}) == TRAIN
    for line in everything:
        assert line.split == "train" and line.reference is not None and line.prompt[-1].role == "user"
        assert line.tries + line.errors == (4 if line.kind != "unmeasured" else 0)
    assert all(line.passes == line.tries for line in by_kind["solved"])
    assert all(0 < line.passes < line.tries for line in by_kind["mixed"])
    for line in by_kind["never-solved"]:
        assert line.passes == 0 and line.at_most == pytest.approx(1 - 0.05 ** (1 / 4))  # what 4 fails of 4 say, one-sided
    assert not {line.task for line in lines(ended, "dev")} & {line.task for line in everything}
    handoff = json.loads((ended / "rl" / "handoff.json").read_text())
    assert handoff["tasks"] == {kind: len(by_kind[kind]) for kind in KINDS}
    start = json.loads((ended / "rl" / "model.json").read_text())
    assert (ended / start["path"]).is_dir() and start["model"]["fingerprint"]
    assert "001-few-shot" in [one["rung"] for one in start["candidates"]], "its prompt is read back from its tries, and proved"
    assert handoff["justification"]["paragraph"] in (ended / "rl" / "README.md").read_text()
    for file in (ended / "rl" / "train_grpo.py", ended / "rl" / "taskset" / "ladder_tasks" / "__init__.py"):
        compile(file.read_text(), str(file), "exec")


def test_a_hand_over_leaves_what_the_script_made(run: Path) -> None:
    (run / "rl" / "out").mkdir()
    (run / "rl" / "out" / "curve.json").write_text("[]")
    kinds = {kind: len(lines(run, kind)) for kind in KINDS}
    (run / "rl" / "tasks" / "mixed.jsonl").unlink()
    assert hand_over(run).tasks == kinds == {kind: len(lines(run, kind)) for kind in KINDS}
    assert (run / "rl" / "out" / "curve.json").exists()


@pytest.mark.parametrize("name", ["train_grpo.py", "tasks/mixed.jsonl", "README.md", "handoff.json"])
def test_what_was_changed_by_hand_is_not_overwritten(name: str, run: Path) -> None:
    path = run / "rl" / name
    made = path.read_bytes()
    path.write_bytes(made + b"# mine\n")
    before = {one: one.read_bytes() for one in (run / "rl").rglob("*") if one.is_file()}
    with pytest.raises(RunError, match=r"was changed by hand, and would be overwritten; rename it to keep it, or delete it") as caught:
        hand_over(run)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert before == {one: one.read_bytes() for one in (run / "rl").rglob("*") if one.is_file()}, "nothing at all was written"
    path.rename(path.with_name("mine"))
    hand_over(run)
    assert not path.read_bytes().endswith(b"# mine\n") and path.with_name("mine").read_bytes() == before[path]


def test_an_older_hand_over_of_the_same_run_is_no_edit(run: Path) -> None:
    shutil.rmtree(run / "rungs" / "003-rejection-sampling" / "sampling")
    fewer = hand_over(run)
    assert fewer.tasks["unmeasured"] == TRAIN and not (run / "rl" / "tasks" / "mixed.jsonl").exists()
    hand_over(run)


@pytest.mark.real
def test_the_tasks_are_plain_jsonl_with_the_columns_that_the_page_names(run: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = {path.stem.replace("-", "_"): str(path) for path in (run / "rl" / "tasks").glob("*.jsonl")}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(run / "cache"))
    assert {len(loaded[split]) for split in loaded} == {len(lines(run, split.replace("_", "-"))) for split in loaded}
    page = (Path(__file__).parent.parent / "docs" / "handoff.md").read_text()
    rows = page[page.index("| column |") :].split("\n\n")[0]
    named = re.findall(r"`([\w-]+)`", " ".join(row.split("|")[1] for row in rows.splitlines()))
    assert set(named) == set(loaded["dev"].column_names) == set(Counted.__struct_fields__)


def test_a_line_changed_by_hand_is_named(run: Path) -> None:
    path = run / "rl" / "tasks" / "mixed.jsonl"
    path.write_text(path.read_text() + '{"task": 7}\n')
    with pytest.raises(RunError, match=rf"mixed.jsonl, line {len(path.read_text().splitlines())}, is no task of a hand-over"):
        given(run / "rl").lines(["mixed"])
    path.write_bytes((run / "rl" / "tasks" / "dev.jsonl").read_bytes())
    with pytest.raises(Refused, match="dev decides"):
        parts(run / "rl")


def test_weights_that_are_gone_are_not_handed_over_as_another_models(run: Path) -> None:
    shutil.rmtree(run / "rungs" / "002-sft" / "model")
    handoff = hand_over(run)
    assert "002-sft" not in [one.rung for one in handoff.start.candidates]
    assert any(limit.startswith("002-sft: its weights are gone") for limit in handoff.limits)
    path = run / "rungs" / "002-sft" / "decision.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "outcome": "keep"}))
    with pytest.raises(RunError, match="002-sft, which the run ships, cannot be handed over: its weights are gone") as caught:
        hand_over(run)
    assert "\n" not in str(caught.value)
    hand = given(run / "rl")
    hand = dataclasses.replace(hand, handoff=replace(hand.handoff, start=replace(hand.handoff.start, path="deleted")))
    with pytest.raises(ModelError, match="deleted is not a folder"):
        _ = hand.prompted


def test_a_run_half_done_is_handed_over_as_far_as_it_is_and_says_so(run: Path) -> None:
    (run / "rungs" / "003-rejection-sampling" / "decision.json").unlink()
    handoff = hand_over(run)
    assert "the run has not ended; still to try: rejection-sampling" in handoff.limits
    assert handoff.start.rung in ("000-base", "001-few-shot", "002-sft")
    for path in (run / "rungs").glob("*/evaluation.json"):
        path.unlink()
    with pytest.raises(RunError, match="has been evaluated, so there is no model"):
        hand_over(run)


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run in"):
        hand_over(tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        given(tmp_path / "rl")


def test_weights_that_changed_since_are_refused(run: Path) -> None:
    hand = given(run / "rl")
    assert hand.prompted.model.fingerprint == hand.handoff.start.model.fingerprint
    start = Path(hand.handoff.start.path)
    changed = run / "changed"
    scripted_model(changed, skill=0.9)
    assert not start.is_absolute() or start.is_dir()
    hand = dataclasses.replace(hand, handoff=replace(hand.handoff, start=replace(hand.handoff.start, path="changed")))
    with pytest.raises(RunError, match="are not those that"):
        _ = hand.prompted


def test_without_a_sampling_stage_the_tasks_are_unmeasured_and_dev_does_not_train(run: Path) -> None:
    shutil.rmtree(run / "rungs" / "003-rejection-sampling" / "sampling")
    handoff = hand_over(run)
    assert handoff.tasks == {"solved": 0, "mixed": 0, "never-solved": 0, "unmeasured": TRAIN}
    assert "has not plateaued" in handoff.justification.reason
    assert {line.split for line in lines(run, "dev")} == {"dev"} and len(lines(run, "dev")) == 10


def test_the_tasks_can_be_split_by_the_model_that_is_handed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "rungs" / "003-rejection-sampling" / "sampling")
    measured = hand_over(run, measure=True)
    assert measured.tasks["unmeasured"] == 0 and sum(measured.tasks.values()) == TRAIN
    assert measured.headroom.by == "" and {line.tries for kind in KINDS for line in lines(run, kind)} == {4}
    place = run / "rl" / measured.start.rung / "sampling"
    keys = Segments(place / "trajectories", Trajectory).records.keys()
    assert len(keys) == len({(key.task, key.index) for key in keys}) == 4 * TRAIN
    monkeypatch.setattr(ScriptedPolicy, "complete", None)  # nothing is asked again, nor by who does not ask for it
    assert hand_over(run, measure=True) == hand_over(run) == measured


def test_nothing_is_measured_that_the_run_has(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handoff = hand_over(run)
    rung = run / "rungs" / "003-rejection-sampling" / "sampling" / "stage.json"
    manifest = json.loads(rung.read_text())
    manifest["inputs"]["agent"] = given(run / "rl").prompted.fingerprint  # as where the last round was rolled back
    rung.write_text(json.dumps(manifest))
    monkeypatch.setattr(ScriptedPolicy, "complete", None)
    assert hand_over(run, measure=True).headroom.by == "" and not list((run / "rl").glob("*/sampling"))
    assert handoff.tasks == hand_over(run).tasks


@pytest.mark.parametrize("harm", ["no agent", "no verdicts", "a verdict less"])
def test_a_measurement_that_is_damaged_is_done_without(harm: str, run: Path) -> None:
    shutil.rmtree(run / "rungs" / "003-rejection-sampling" / "sampling")
    place = run / "rl" / hand_over(run, measure=True).start.rung / "sampling"
    [verdicts] = [path for path in (place / "verdicts").iterdir() if path.stat().st_size]
    if harm == "no agent":
        (place / "stage.json").write_text('{"stage":"x","inputs":{},"settings":"s","outputs":{},"seconds":1}')
    elif harm == "no verdicts":
        verdicts.unlink()
    else:
        verdicts.write_bytes(b"".join(verdicts.read_bytes().splitlines(keepends=True)[1:]))
    handoff = hand_over(run)
    assert handoff.tasks["unmeasured"] == TRAIN and "sharpen handoff --measure makes them" in handoff.limits[-1]
    (place / "stage.json").write_text("garbage")
    assert read_run(run).rungs and try_to_hand_over(run, load_tasks(load_settings(run / "run.yaml", {}).tasks)).startswith(
        "rl:    not written"
    )


def test_measuring_stops_at_a_cap_and_leaves_the_hand_over_as_it_was(run: Path) -> None:
    Run(run).note({"event": "asked", "goal": None, "spending": {"max_calls": 1}})
    before = (run / "rl" / "handoff.json").read_bytes()
    shutil.rmtree(run / "rungs" / "003-rejection-sampling" / "sampling")
    with pytest.raises(Stopped, match=r"max_calls.*those that sharpen run was last given"):
        hand_over(run, measure=True)
    assert (run / "rl" / "handoff.json").read_bytes() == before


def test_a_users_own_verifier_that_nobody_audited_is_said_to_be_that(tmp_path: Path) -> None:
    scripted_model(tmp_path / "base", skill=0.5)
    (tmp_path / "verifier.py").write_text("def verify(answer, reference):\n    return answer == reference\n")
    data = "".join(json.dumps({"prompt": f"Calculate {i} + 1.", "reference": str(i + 1)}) + "\n" for i in range(24))
    (tmp_path / "tasks.jsonl").write_text(data)
    source = {
        "source": "jsonl",
        "path": str(tmp_path / "tasks.jsonl"),
        "verifier": f"{tmp_path / 'verifier.py'}:verify",
        "max_overlap": 1.0,
    }
    settings = {
        "model": str(tmp_path / "base"),
        "tasks": {**source, "splits": {"train": 12, "dev": 12}},
        "ladder": {"rungs": ["rejection-sampling"]},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    climb(load_settings(tmp_path / "own.yaml", {}), tmp_path / "runs")
    handoff = hand_over(tmp_path / "runs" / "own")
    assert not handoff.verifier.exact and handoff.verifier.purity is not None and handoff.verifier.purity.outcome == "open"
    assert "left to try or to settle: rejection-sampling, label" in handoff.justification.reason
    assert read_json(tmp_path / "runs" / "own" / "rungs" / "001-rejection-sampling" / "decision.json", Decision).awaits
    assert handoff.tasks["unmeasured"] == 0, "a refused rung's tries count, too"


# ---------------------------------------------------------------- which model


def rung(name: str, passes: list[int], outcome: Any = "keep", shipped: bool = False) -> RungView:
    results = tuple(TaskResult(task=str(at), family=str(at), samples=8, passes=c) for at, c in enumerate(passes))
    at = {k: pass_interval(results, k) for k in (1, 4, 8)}
    from sharpen.records import Cost

    dev = Evaluation(model=name, split="dev", sampling={}, tasks=results, pass_at=at, cost=Cost())
    return RungView(name=name, method="sft", dev=dev, decision=Decision(outcome=outcome, action="", reasons=()), shipped=shipped)


def test_the_model_is_the_one_that_ships_unless_another_ones_pass_at_k_is_surely_higher() -> None:
    narrow = rung("1-narrow", [8, 0] * 30, shipped=True)  # pass@1 50 %, pass@8 50 %
    broad = rung("2-broad", [1] * 60, outcome="undecided")  # pass@1 12 %, pass@8 100 %
    hardly = rung("2-hardly", [8, 0] * 29 + [8, 1], outcome="undecided")
    assert choose([narrow, broad], 0)[0].name == "2-broad"
    assert choose([narrow, hardly], 0)[0].name == "1-narrow"
    assert choose([narrow, replace(broad, decision=Decision(outcome="worse", action="", reasons=()))], 0)[0].name == "1-narrow"
    assert broad.dev is not None
    fewer = replace(broad, dev=replace(broad.dev, pass_at={1: broad.dev.pass_at[1], 4: broad.dev.pass_at[4]}))
    assert choose([narrow, fewer], 0)[2] == 4  # the largest that all have


# ---------------------------------------------------------------- is RL justified


ENDED = replace(SAMPLED, tried=PLATEAU, **GOAL)
ONE_WORSE = (round_("worse", -0.1, "rejection-sampling"),)
WEAK, ALMOST = (round_("undecided", 0.02, half=0.1),), (round_("undecided", 0.02, half=0.021),)
REFUSED = (WORKED, Tried(method="expert-iteration", outcome="refuse", why="the same tries would train the same model again"))


@pytest.mark.parametrize(
    ("change", "outcome", "says"),
    [
        ({}, "justified", "producible but rare, and supervision got no further"),
        ({"tried": (WORKED,)}, "not justified", "left to try or to settle: expert-iteration"),
        ({"tried": REFUSED}, "not justified", "self-training has not plateaued, and is stuck (its rounds ended: keep, refuse;"),
        ({"tried": ONE_WORSE}, "not justified", "left to try or to settle: retry"),
        ({"tried": ONE_WORSE, "costs": {"expert-iteration": 9.0}, "left": 1.0}, "not justified", "left to try or to settle: retry"),
        ({"tried": WEAK * 2}, "not justified", "left to try or to settle: measure"),
        ({"tried": ALMOST * 2}, "not justified", "stuck (its rounds ended: undecided, undecided;"),
        ({"tried": ()}, "not justified", "left to try or to settle: rejection-sampling"),
        ({"tasks_sampled": None, "tasks_solved": None, "tried": ()}, "not justified", "left to try or to settle: rejection-sampling"),
        ({"goal": None}, "open", "no goal says whether the gap that is left is worth RL"),
        ({"goal": Goal(value=0.2)}, "not justified", "the goal is surely met"),
        ({"goal": Goal(value=0.42)}, "not justified", "no gap is shown"),
        ({"tasks_mixed": 3}, "not justified", "too little to learn from"),
        ({"gold_passes": False}, "not justified", "fails gold solutions"),
        ({"noop_fails": False, "trusted_unaudited": True}, "not justified", "passes empty or off-task answers"),
        ({"verifier_exact": False, "trusted_unaudited": True, "cheat": "asks to be passed"}, "not justified", "passes a cheat"),
        ({"verifier_exact": False}, "not justified", "left to try or to settle: label"),
        ({"verifier_exact": False, "purity": PURE}, "justified", "what RL is for"),
        ({"verifier_exact": False, "purity": replace(PURE, outcome="below")}, "not justified", "too much of what the verifier keeps"),
    ],
)
def test_whether_rl_is_justified_is_what_the_advisor_says_of_it(change: dict[str, Any], outcome: str, says: str) -> None:
    option = rl_option(replace(ENDED, **change))
    found = justify(option, SEEN)
    assert found.outcome == outcome == {"advised": "justified", "open": "open", "refused": "not justified"}[option.standing]
    assert says in found.reason and found.reason in found.paragraph and "nan" not in found.paragraph


def rl_option(seen: Measurements) -> Option:
    return next(one for one in advisor.choose(seen).options if one.action == "rl")


@pytest.mark.parametrize(
    ("exact", "graded", "purity", "says"),
    [
        (True, 10, None, "tasks never solved on which every try scores the same (20"),
        (False, 0, PURE, "the mistakes of the verifier v (purity at least 93%)"),
    ],
)
def test_what_rl_cannot_fix_is_said_with_its_numbers(exact: bool, graded: int, purity: Purity | None, says: str) -> None:
    assert says in justify(rl_option(ENDED), replace(SEEN, exact=exact, graded=graded, purity=purity)).paragraph


@pytest.mark.parametrize("goal", [{}, {"goal.value": "0.99"}])
def test_the_hand_over_and_the_advice_say_the_same(ended: Path, run: Path, goal: dict[str, str]) -> None:
    told = advise(load_settings(ended.parents[1] / "ladder.yaml", goal), run.parent)
    assert told.bought.tries == 0
    option = next(one for one in told.advice.options if one.action == "rl")
    found = hand_over(run).justification  # with the goal that the last command was given
    assert found.reason == advisor.reason_line(option.reason) and (found.outcome == "justified") == (option.standing == "advised")
    assert found.reason in (run / "rl" / "README.md").read_text()


def test_what_the_run_found_of_its_verifier_decides_and_is_not_asked_again(run: Path) -> None:
    there = read_json(run / CHECKED, Checked)
    write_json(run / CHECKED, replace(there, checks=replace(there.checks, noop_fails=False)))
    found = hand_over(run).justification
    assert found.outcome == "not justified" and "passes empty or off-task answers" in found.reason
    write_json(run / CHECKED, replace(there, verifier="another", checks=replace(there.checks, noop_fails=False)))
    assert "off-task" not in hand_over(run).justification.reason, "what was found of another verifier says nothing of this one"


def test_the_cost_is_the_runs_own() -> None:
    paragraph = justify(rl_option(ENDED), replace(SEEN, dollars=0.01)).paragraph
    assert (
        "costs 400 tries, about 40k prompt and 8k sampled tokens, $4.00, 3 minutes" in paragraph
    )  # 50 tasks, 8 tries of 100 + 20 tokens, 0.5 s


# ---------------------------------------------------------------- TRL


def test_no_mixed_tasks_and_dev_are_refused_before_anything_is_loaded(run: Path) -> None:
    (run / "rl" / "tasks" / "mixed.jsonl").write_text("")
    with pytest.raises(Refused, match="no mixed tasks, so no try is better than another"):
        parts(run / "rl")
    with pytest.raises(Refused, match="dev decides"):
        parts(run / "rl", kinds=["dev"])
    with pytest.raises(RunError, match="no 'mixd' tasks"):
        parts(run / "rl", kinds=["mixd"])


def test_a_reward_is_the_verdict_and_an_error_is_none() -> None:
    verdict = Verdict(key=SampleKey(model="m", task="t", environment="e", sampling="s", index=0), outcome="fail", score=0.3)
    assert _reward(verdict, "pass") == 0.0 and _reward(verdict, "score") == 0.3
    assert _reward(replace(verdict, outcome="pass", score=None), "score") == 1.0
    assert _reward(replace(verdict, outcome="error"), "pass") is None and _reward(replace(verdict, outcome="error"), "score") is None


def test_a_verifier_without_its_sandbox_ends_the_script_at_once_and_in_one_line() -> None:
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    broken = Verdict(key=key, outcome="error", reason="the verifier raised SandboxError: the sandbox needs bubblewrap")
    with pytest.raises(
        TooManyErrors, match=r"none of the first 2 tries could be judged.*: the verifier raised SandboxError: the sandbox needs"
    ) as caught:
        _rewards([broken, broken], "pass", first=True)
    assert "\n" not in str(caught.value)
    assert _rewards([broken, broken], "pass", first=False) == [None, None], "what breaks for a while does not lose the updates made before"
    assert _rewards([broken, replace(broken, outcome="fail")], "pass", first=True) == [None, 0.0]


def test_what_trl_samples_is_judged_as_the_run_judged(run: Path) -> None:
    hand = given(run / "rl")
    some = hand.lines(["all"])[:1]
    played = _Played(hand, some, ScriptedTemplate(), "pass")
    task = played.tasks[some[0].task]

    def judged(text: str, *, ended: bool = True) -> str:
        ids = [*text.encode(), *([END_ID] if ended else [])]
        return played.judged([task], [played.as_trajectory(task, [{"role": "assistant", "content": text}], ids, None)])[0].outcome

    assert played.form == "reward" and judged(str(task.reference)) == "pass"
    assert judged("no idea") == "fail" and judged(str(task.reference), ended=False) == "fail"


def test_what_a_judge_costs_the_script_is_counted_and_capped(run: Path, tmp_path: Path) -> None:
    policy = answering(PASS)
    hand = given(run / "rl")
    hand = dataclasses.replace(hand, tasks=dataclasses.replace(hand.tasks, verifier=LLMJudge(THREE, policy)))
    some = hand.lines(["all"])[:1]
    played = _Played(hand, some, ScriptedTemplate(), "pass", Meter(Spending(max_calls=7), tmp_path / "spent.json"))
    task = played.tasks[some[0].task]
    tries = [played.as_trajectory(task, [{"role": "assistant", "content": text}], [*text.encode(), END_ID], None) for text in "abc"]
    with pytest.raises(Stopped, match=r"max_calls"):
        played.judged([task] * 3, tries)
    assert read_json(tmp_path / "spent.json", Bill).stages["grpo/judge"].calls == len(policy.asked) in (3, 6)


def test_the_scripts_caps_are_those_that_the_run_was_last_asked_for(run: Path) -> None:
    Run(run).note({"event": "asked", "goal": None, "spending": {"max_dollars": 2.5}})
    assert given(run / "rl").settings.spending == Spending(max_dollars=2.5)


@dataclass
class Expert:
    """In the place of TRL's trainer: what it generates is the next of the commands that solve the task, or the last one cut short."""

    played: _Played
    cut: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_completion_length: int = 64
    model: Any = field(default_factory=lambda: SimpleNamespace(config=SimpleNamespace(max_position_embeddings=1 << 20)))

    def _generate_single_turn(
        self, prompts: list[list[int]], images: None, fields: dict[str, Any], num_generations: int
    ) -> tuple[Any, Any]:
        assert num_generations == 1
        answers = []
        for prompt in prompts:
            text = bytes(token for token in prompt if token < 256).decode()
            task = next(key for key, opening in self.played.openings.items() if opening[-1].content in text)
            commands = self.played.environment.expert(self.played.tasks[task]) or ()
            command = str(commands[text.count("<|assistant|>") - 1])
            answers.append([*command.encode(), *([] if task == self.cut else [END_ID])])
        return answers, [[-0.5] * len(answer) for answer in answers]


def test_a_rollout_plays_the_game_and_masks_what_the_game_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textworld")
    monkeypatch.chdir(tmp_path)
    scripted_model(tmp_path / "base", skill=0.0)
    games = {"source": "textworld", "seed": 5, "rooms": 1, "objects": 3, "shortest": 2, "longest": 3, "splits": {"train": 3, "dev": 2}}
    (tmp_path / "game.yaml").write_text(
        yaml.safe_dump({"model": str(tmp_path / "base"), "tasks": games, "ladder": {"rungs": ["rejection-sampling"]}})
    )
    climb(load_settings(tmp_path / "game.yaml", {"sampling.n": "2"}), tmp_path / "runs")
    hand = given(tmp_path / "runs" / "game" / "rl")
    never = hand.lines(["never-solved"])
    assert len(never) == 3 and all(line.prompt for line in never), "the opening is what the tries saw"
    played = _Played(hand, never, ScriptedTemplate(), "pass")
    assert played.form == "rollout_func"
    prompts = [played.prompt(line) for line in never]
    found = played.rollout(prompts, Expert(played, cut=never[0].task))
    assert [one["outcome"] for one in found["verdict"]] == ["fail", "pass", "pass"]  # the first was cut at its first turn
    for line, prompt, ids, mask, logprobs in zip(
        never, *(found[k] for k in ("prompt_ids", "completion_ids", "env_mask", "logprobs")), strict=True
    ):
        commands = [str(command) for command in played.environment.expert(played.tasks[line.task]) or ()]
        said = bytes(token for token, own in zip(ids, mask, strict=True) if own and token < 256).decode()
        assert said == (commands[0] if line is never[0] else "".join(commands))
        assert played.template.decode(prompt).endswith(f"{line.prompt[-1].content}<|end|>\n<|assistant|>\n")
        assert len(ids) == len(mask) == len(logprobs) and all((p < 0) == bool(own) for p, own in zip(logprobs, mask, strict=True))


OBJECT = """
class Sum:
    def reset(self, reference: str, **row: object) -> str:
        self.total, self.wanted, self.seen = 0, reference, []
        return " Begin."

    def add(self, number: int) -> int:
        \"\"\"Add a number.

        Args:
            number: what to add
        \"\"\"
        self.total += number
        return self.total

    async def past(self) -> list[int]:
        \"\"\"All totals so far.\"\"\"
        return [self.total] * 9

    def get_reward(self) -> float:
        if self.total < 0:
            raise RuntimeError("overdrawn")
        return float(str(self.total) == self.wanted)
"""


def with_tools(hand: Given, tools: Any) -> Given:
    """The hand-over as if its tasks had been played with ``tools``."""
    tasks: Any = hand.settings.tasks
    settings = replace(hand.settings, tasks=replace(tasks, environment=tools))
    return dataclasses.replace(hand, settings=settings, tasks=dataclasses.replace(hand.tasks, environment=load_environment(tools)))


def test_an_object_becomes_what_trl_calls_as_the_run_calls_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "things.py").write_text(OBJECT)
    hand = with_tools(given(run / "rl"), Object(factory=f"{tmp_path / 'things.py'}:Sum", max_chars=10, system="Be brief."))
    line = hand.lines(["all"])[0]
    played = _Played(hand, [line], ScriptedTemplate(), "pass")
    made = played.factory()
    thing, other = made(), made()
    public = [name for name, _ in inspect.getmembers(type(thing), inspect.isfunction) if not name.startswith("_")]
    assert public == ["add", "past", "reset"]  # get_reward would be added to the verdict
    assert thing.reset(task=line.task, prompt=[]) == " Begin." and other.reset(task=line.task, prompt=[]) == " Begin."
    assert str(inspect.signature(thing.add)) == "(number: int) -> int" and "what to add" in thing.add.__doc__
    get_json_schema = pytest.importorskip("transformers.utils.chat_template_utils").get_json_schema
    assert get_json_schema(thing.past)["function"]["name"] == "past"
    assert thing.add(number=int(line.reference)) == line.reference, "text, as the run has it"
    assert thing.past().startswith("[") and thing.past().endswith("more characters cut]"), "TRL would take a list for pictures"
    with pytest.raises(ToolProblem, match="it takes number"):
        thing.add(numbr=1)
    opened = played.openings[line.task]
    assert opened[0] == Message(role="system", content="Be brief.") and "Begin" not in opened[-1].content
    task, said = played.tasks[line.task], [{"role": "assistant", "content": "done"}]
    right = played.as_trajectory(task, said, [END_ID], thing)
    assert right.messages[1].content.endswith(" Begin.") and right.outcome == {
        "tool_calls": 4,
        "tool_errors": 1,
        "score": 1.0,
        "success": True,
    }
    assert played.as_trajectory(task, said, [END_ID], other).outcome["success"] is False
    thing.reset(task=line.task)
    thing.add(number=-1)
    broken = played.as_trajectory(task, said, [END_ID], thing)
    assert broken.stop == "error" and broken.error == "RuntimeError: overdrawn"
    assert played.judged([task], [broken])[0].outcome == "error", "what broke is no fail"


def test_tools_that_trl_would_hide_are_played_by_the_rollout(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text('def reset() -> str:\n    """Begin again."""\n    return "done"\n')
    hand = with_tools(given(run / "rl"), Functions(functions=(f"{tmp_path / 'tools.py'}:reset",)))
    played = _Played(hand, hand.lines(["all"])[:1], ScriptedTemplate(), "pass")
    assert played.form == "rollout_func"
    with pytest.raises(SettingsError, match="does not show the model a tool called reset"):
        played.factory()


def test_a_trainer_that_breaks_ends_the_rollout(run: Path) -> None:
    hand = given(run / "rl")
    some = hand.lines(["all"])[:2]
    played = _Played(hand, some, ScriptedTemplate(), "pass")

    class Broken(Expert):
        def _generate_single_turn(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        played.rollout([played.prompt(line) for line in some], Broken(played))


def test_the_curve_leaves_errors_out_and_is_one_svg(tmp_path: Path) -> None:
    scores = Scores(tmp_path)
    tasks = [Task(key=name, family=name) for name in "abc"]
    scores.add(0, [(task, reward) for task in tasks for reward in (1.0, 0.0)], write=False)
    scores.add(1, [(tasks[0], 1.0), (tasks[0], None), (tasks[1], 1.0), (tasks[1], 1.0)], write=True)
    first, second = scores.points
    assert (first.reward.value, first.tries, first.mixed, first.groups) == (0.5, 6, 3, 3)
    assert (second.reward.value, second.tries, second.mixed) == (1.0, 3, 0)
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 10
    drawn = xml.etree.ElementTree.parse(tmp_path / "curve.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 2


# ---------------------------------------------------------------- verifiers


@dataclass
class Reply:
    last_reply: str
    terminated: bool = False


@dataclass
class Talk:
    """In the place of verifiers' interaction: says one thing."""

    says: Reply
    trace: Any = field(default_factory=lambda: SimpleNamespace(errors=[], is_timeout=False, is_truncated=False))

    async def turn(self, message: Any = None) -> Reply:
        return self.says


def test_the_taskset_has_the_tasks_and_judges_them_alike(run: Path) -> None:
    hand = given(run / "rl")
    given_rows = list(rows(hand, ["all"]))
    assert len(given_rows) == TRAIN and all(row["prompt"][-1]["role"] == "user" and row["reference"] for row in given_rows)
    row = given_rows[0]
    assert asyncio.run(play(hand, row["id"], Talk(Reply(str(row["reference"]))))).outcome == "pass"
    assert asyncio.run(play(hand, row["id"], Talk(Reply("nonsense")))).outcome == "fail"
    assert asyncio.run(play(hand, row["id"], Talk(Reply("", terminated=True)))).outcome == "fail"
    cut = SimpleNamespace(errors=[], is_timeout=False, is_truncated=True)
    assert asyncio.run(play(hand, row["id"], Talk(Reply(str(row["reference"])), cut))).outcome == "fail", (
        "a turn that was cut is not what was meant"
    )
    for trace in (SimpleNamespace(errors=[SimpleNamespace(message="503")], is_timeout=False), SimpleNamespace(errors=[], is_timeout=True)):
        with pytest.raises(RunError, match=r"was not played to its end: (503|it took too long)"):
            asyncio.run(play(hand, row["id"], Talk(Reply("", terminated=True), trace)))
    (run / "rl" / "tasks" / "solved.jsonl").unlink(missing_ok=True)
    with pytest.raises(Refused, match="has no solved tasks"):
        list(rows(hand, ["solved"]))


GUESS = """
from sharpen.environments.base import Step
from sharpen.records import Message

class Guess:
    name, max_turns, tools = "guess-1", 4, ()

    def __init__(self, wanted: int = 0) -> None:
        self.wanted = wanted

    async def start(self, task):
        return Guess(int(task.reference)), task.prompt

    async def step(self, message):
        said = message.content.strip()
        if said == str(self.wanted):
            return Step(action=said, done=True)
        told = "more" if said.isdigit() and int(said) < self.wanted else "less"
        return Step(action=said, messages=(Message(role="user", content=told),))

    def expert(self, task):
        return (task.reference,)

    async def close(self):
        pass
"""


def count_up(conversation: Conversation, random: Random) -> str:
    """A player that says one more each time: right within four turns up to 4, and broken at once where the task names a broken server."""
    if "broken" in conversation.messages[0].content:
        raise PolicyError("the server is down")
    return str(sum(message.role == "user" for message in conversation.messages))


@pytest.mark.real
async def test_verifiers_plays_whole_episodes_and_gives_the_reward_that_sharpen_gives(tmp_path: Path) -> None:
    """With verifiers' own command, in its own environment, against an OpenAI-compatible server: episodes of several turns, won, lost and broken."""
    python = Path(__file__).parent.parent / ".venv-verifiers" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .venv-verifiers; bash scripts/verifiers.sh makes it")
    (tmp_path / "guess.py").write_text(GUESS)
    (tmp_path / "verifier.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    asked = {"Guess.": "1", "Guess again.": "3", "Guess high.": "9", "Guess on a broken server.": "2", "For dev.": "1"}
    data = "".join(
        json.dumps({"prompt": prompt, "reference": wanted, "split": "dev" if "dev" in prompt else "train"}) + "\n"
        for prompt, wanted in asked.items()
    )
    (tmp_path / "tasks.jsonl").write_text(data)
    scripted_model(tmp_path / "base", skill=0.0)
    tasks = {
        "source": "jsonl",
        "path": str(tmp_path / "tasks.jsonl"),
        "verifier": f"{tmp_path / 'verifier.py'}:verify",
        "environment": {"environment": "plugin", "name": f"{tmp_path / 'guess.py'}:Guess"},
        "max_overlap": 1.0,
    }
    (tmp_path / "guess.yaml").write_text(yaml.safe_dump({"model": str(tmp_path / "base"), "tasks": tasks, "ladder": {"rungs": []}}))
    climb(load_settings(tmp_path / "guess.yaml", {}), tmp_path / "runs")
    rl = tmp_path / "runs" / "guess" / "rl"

    policy, sampling = ScriptedPolicy(count_up), Sampling(temperature=1.0, top_p=1.0, max_tokens=64)
    known = given(rl).tasks
    assert known.verifier is not None
    wanted: dict[str, float] = {}
    for task in known.split("train").tasks:
        with contextlib.suppress(PolicyError):
            tried = await PolicyAgent("player", policy, "player", known.environment, sampling).run(task, 0)
            wanted[task.key] = float(judge(task, tried, known.verifier).outcome == "pass")
    async with serve(Calls(policy, sampling, 100)) as url:
        flags = [
            "--client.base_url",
            url,
            "--model",
            "player",
            "--env.taskset.kinds",
            '["unmeasured"]',
            "--no-push",
            "--no-rich",
            "-o",
            str(tmp_path / "out"),
        ]
        paths = [str(Path(sharpen.__file__).parent.parent), str(rl / "taskset")]
        environment = {
            **os.environ,
            "PRIME_API_KEY": "none",
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(python.parent / "vf-eval"), "guess_tasks", *flags]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = await process.communicate()
    assert process.returncode == 0, said.decode()[-4000:]
    [traces] = (tmp_path / "out").glob("*/traces.jsonl")
    episodes = {one["task"]["data"]["id"]: one for one in map(json.loads, traces.read_text().splitlines())}
    given_rewards = {key: one["traces"][0]["rewards"]["passed"]["score"] for key, one in episodes.items() if one["traces"][0]["rewards"]}
    assert given_rewards == wanted and sorted(wanted.values()) == [0.0, 1.0, 1.0]
    [broken] = episodes.keys() - wanted.keys()
    assert not episodes[broken]["ok"] and "was not played to its end" in episodes[broken]["errors"][0]["message"]
    turns = {key: sum(node.get("sampled", False) for node in one["traces"][0]["nodes"]) for key, one in episodes.items()}
    assert sorted(turns.values()) == [0, 1, 3, 4]


# ---------------------------------------------------------------- the script, for real


def real_run(folder: Path, tasks: dict[str, Any], **settings: Any) -> Path:
    data = {"name": "real", "tasks": tasks, "sampling": {"n": 2, "max_tokens": 12}, "evaluation": {"n": 1, "k": [1], "max_tokens": 12}}
    (folder / "real.yaml").write_text(yaml.safe_dump({**data, "ladder": {"rungs": []}, "engine": {"engine": "transformers"}, **settings}))
    climb(load_settings(folder / "real.yaml", {}), folder / "runs")
    return folder / "runs" / "real"


def train(run: Path, *flags: str) -> list[dict[str, Any]]:
    asked = [
        sys.executable,
        str(run / "rl" / "train_grpo.py"),
        "--steps",
        "2",
        "--prompts",
        "1",
        "--generations",
        "2",
        "--tasks",
        "unmeasured",
        *flags,
    ]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    out = run / "rl" / "out"
    assert (out / "model" / "model.safetensors").exists() and (out / "curve.svg").exists()
    card, start = json.loads((out / "model" / "sharpen.json").read_text()), json.loads((run / "rl" / "model.json").read_text())
    assert card["lineage"]["parent"] == start["model"]["fingerprint"] and card["lineage"]["settings"]["method"] == "grpo"
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


SUMS = {**LADDER["tasks"], "splits": {"train": 4, "dev": 2}}  # type: ignore[dict-item]
GAMES = {
    "source": "textworld",
    "seed": 5,
    "rooms": 1,
    "objects": 2,
    "shortest": 1,
    "longest": 2,
    "max_turns": 3,
    "splits": {"train": 4, "dev": 2},
}
TOOLS = {**SUMS, "environment": {"environment": "tools", "functions": ["examples/calculator/tools.py:calculator"], "max_turns": 2}}


@pytest.mark.real
@pytest.mark.parametrize(
    ("tasks", "template", "flags"), [(SUMS, "", []), (SUMS, "", ["--form", "rollout_func"]), (GAMES, "", []), (TOOLS, "hermes", [])]
)
def test_the_script_runs_as_it_stands(tasks: dict[str, Any], template: str, flags: list[str], tmp_path: Path) -> None:
    """With SmolLM2: one prompt, games by ``rollout_func``, tools by ``environment_factory``."""
    run = real_run(tmp_path, tasks, template=template)
    assert len(train(run, *flags)) == 4
