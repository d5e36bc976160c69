"""Distillation on the scripted fake: who teaches, what is refused, what the student has of it, and at which cost."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from msgspec.structs import replace
from scipy.special import stdtrit

from conftest import benchmark
from sharpen.agents.teacher import Teacher, in_words
from sharpen.chat.scripted import ScriptedTemplate
from sharpen.cli import EXIT_REFUSED, main
from sharpen.errors import ModelError, PolicyError, RunError, SettingsError, Unsettled
from sharpen.methods.base import Bench, Prompted
from sharpen.methods.distillation import as_read, is_student, other_tools
from sharpen.models import load_model, save_lineage, shipped
from sharpen.plan import plan
from sharpen.policies.meter import Bill
from sharpen.policies.scripted import arithmetic, scripted_model
from sharpen.records import (
    AtEqualRate,
    Lineage,
    Message,
    RoundPurity,
    SameFault,
    SampleKey,
    Selection,
    TaskResult,
    ToolCall,
    Trajectory,
    TurnTokens,
    Verdict,
)
from sharpen.report.card import model_card
from sharpen.report.live import Live
from sharpen.report.page import RungView, rate, render
from sharpen.report.read import read_run
from sharpen.run import climb, distilling, open_bench
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, select
from sharpen.settings import RunSettings, load_settings
from sharpen.stats import ratio_of_means, share_of_gain
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST, Run
from sharpen.tasks.load import load_tasks

SMALL = {
    "seed": 3,
    "tasks": {
        "source": "reasoning_gym",
        "dataset": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "splits": {"demo": 4, "train": 24, "dev": 24},
        "seed": 7,
    },
    "sampling": {"n": 4, "max_tokens": 32},
    "evaluation": {"n": 2, "k": [1, 2], "max_tokens": 32},
    "ladder": {"rungs": []},
}
TERMS = [{"teacher": "owl", "licence": "MIT", "settled_by": "ann", "settled_on": "2026-01-02", "evidence": "https://example.org/owl"}]


def settings_of(folder: Path, name: str = "base", **more: Any) -> Path:
    """A settings file for a scripted student that is right one time in five."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "student").exists():
        scripted_model(folder / "student", skill=0.2)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "model": str(folder / "student"), **more}))
    return path


def taught(folder: Path, **more: Any) -> RunSettings:
    return load_settings(settings_of(folder, "taught", ladder={"rungs": ["distillation"]}, **more), {})


def rung_of(folder: Path, name: str = "001-distillation") -> RungView:
    return next(rung for rung in read_run(folder, samples=2).rungs if rung.name == name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that shipped its first rung, and best-of-8 of that distilled by one command."""
    folder = tmp_path_factory.mktemp("finished")
    climb(load_settings(settings_of(folder, ladder={"rungs": ["rejection-sampling"], "control": False, "alpha": 0.9}), {}), folder / "runs")
    assert main(["distil", str(folder / "runs/base"), "--teacher", "best-of-8"]) == 0
    return folder


# ---------------------------------------------------------------- one command after a run


def test_one_command_distils_best_of_8_of_what_a_run_ships_into_one_try(finished: Path) -> None:
    run = finished / "runs/base-best-of-8"
    assert (run / "run.yaml").exists()
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert settings["model"] == str((finished / "runs/base/rungs/001-rejection-sampling/model").resolve())
    rung = rung_of(run)
    made = rung.distilled
    assert made is not None and rung.teacher is not None and rung.decision is not None
    assert made.before.rate.value < made.after.rate.value and made.before.rate.value < made.teacher.rate.value
    assert made.gap.deciding.low > 0
    assert made.teacher.turns == 8 and made.before.turns == made.after.turns == 1
    assert made.tokens.value == pytest.approx(1 / 8, rel=0.05) and made.tokens.low <= made.tokens.value <= made.tokens.high
    assert made.kept.value == pytest.approx(made.gained.printed.value / made.gap.printed.value)
    assert made.teacher.seconds > 0 and made.after.seconds > 0
    assert made.teaching.calls == 24 * 8
    assert "chosen by the grader itself" in rung.teacher.played and "pass@8" in rung.teacher.played
    assert not rung.control and not (run / "rungs/001-distillation-control").exists()  # its words are the student's own
    handed = json.loads((run / "rl/handoff.json").read_text())
    assert handed["tasks"] == {
        "solved": 0,
        "mixed": 0,
        "never-solved": 0,
        "unmeasured": 24,
    }  # a choice among eight is no try of the student's


def test_the_table_is_on_the_page_and_on_the_terminal(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distil", str(finished / "runs/base"), "--teacher", "best-of-8"]) == 0  # a finished run says it again, and makes nothing
    out = " ".join(capsys.readouterr().out.split())
    assert "teacher: " in out and "student before: " in out and "student after: " in out
    assert "of its teacher's gain, for 12.5 % [" in out and "of its tokens" in out
    page = (finished / "runs/base-best-of-8/report.html").read_text()
    assert "Distillation, 001-distillation" in page and "pass@1 here is pass@8 of single tries" in page


def test_rows_and_lineage_say_what_the_student_was_trained_on(finished: Path) -> None:
    run = finished / "runs/base-best-of-8"
    student, before = load_model(str(run / "rungs/001-distillation/model")), load_model(str(finished / "runs/base"))
    assert student.lineage.parent == before.fingerprint and student.lineage.base == "scripted"
    assert student.lineage.settings["teacher"] == f"{before.name}, best of 8"
    assert [terms.teacher for terms in student.lineage.terms] == ["expert"]  # the demonstrations'; its own words need nobody's leave
    selection = read_json(run / "rungs/001-distillation/selection.json", Selection)
    assert selection.rows is not None and selection.rows.by[before.name] == selection.rows.sampled > 0
    assert set(selection.rows.by) == {"expert", before.name}


def test_the_card_names_the_teacher_its_rate_what_was_kept_of_it_and_its_faults(finished: Path) -> None:
    run = finished / "runs/base-best-of-8"
    model, rung = load_model(str(run / "rungs/001-distillation/model")), rung_of(run)
    assert rung.distilled is not None and rung.faults is not None
    some = rung.distilled.teacher.rate
    equal = AtEqualRate(tasks=3, outside=1, student=some, others=some, difference=some)
    same = SameFault(
        other="before", tasks=2, student=some, others=some, difference=some, passes={"student": some, "before": some}, at_equal_rate=equal
    )
    rung = msgspec.structs.replace(rung, faults=msgspec.structs.replace(rung.faults, same=(same,)))
    view = read_run(run, samples=0)
    shown = render(msgspec.structs.replace(view, rungs=(*view.rungs[:1], rung)))
    assert "Of 4 tasks that the teacher fails, on the 3 that the student before training fails too:" in shown
    assert "were it to pass each task as often as the student does now" in shown and "Of the other 1, which it always passes" in shown
    card = model_card(model, "x", view, rung)
    assert f"SFT on tries of the teacher {rung.distilled.teacher.who} that were selected for it" in card
    assert f"Its teacher, {rung.distilled.teacher.who}, passes {rate(rung.distilled.teacher.rate)} of dev" in card
    assert f"The student has {rate(rung.distilled.kept)} of its teacher's gain, for 12.5 % [" in card
    assert (
        "On 3 of the dev tasks that the teacher fails" in card
        and "fail in the teacher's class; before training, at equal pass rate" in card
    )
    assert ("Failures of a class that it did not show" in card) is (rung.faults.many > 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "lora"}, "supervision alone: SFT on demonstrations, or on tries of its own,"),
        ({"method": "lora", "teacher": "owl"}, "supervision alone: SFT on tries of the teacher owl"),
        (
            {"method": "lora", "on_policy": {"teacher": "owl", "lmbda": 1.0}},
            "the teacher owl scores every token of the model's own answers",
        ),
        ({"method": "lora", "on_policy": {"teacher": "owl", "lmbda": 0.5}}, "answers of its own and of its teacher's"),
        ({"method": "lora", "preference": {"nll": 1.0, "trained_on": 7}}, "DPO beside an NLL term, on 7 pairs"),
        ({"method": "grpo"}, "by RL, with GRPO"),
    ],
)
def test_the_card_says_how_a_model_was_trained(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    scripted_model(tmp_path / "m", skill=0.1)
    save_lineage(tmp_path / "m", Lineage(base="b/c", training_set="x", settings=settings), "m")
    (line,) = [line for line in model_card(load_model(str(tmp_path / "m")), "m").splitlines() if line.startswith("Trained from")]
    assert says in line and ("SFT" in line) is (
        "on_policy" not in settings and "preference" not in settings and settings["method"] != "grpo"
    )
    assert ("supervision alone" in line) is (settings["method"] != "grpo")


def test_the_benchmark_reads_what_a_task_costs_from_a_finished_run(finished: Path) -> None:
    run, module = finished / "runs/base-best-of-8", benchmark("distillation")
    made = rung_of(run).distilled
    assert made is not None
    results = module.measure(run, per_hour=3.6)
    found = results["rungs"]["001-distillation"]
    for who, worked in (("teacher", made.teacher), ("student before", made.before), ("student after", made.after)):
        one = found["a task"][who]
        assert one["tokens"].value == pytest.approx(worked.prompt_tokens + worked.sampled_tokens)
        assert one["seconds"].value == pytest.approx(worked.seconds) and one["seconds"].low < worked.seconds < one["seconds"].high
        assert one["dollars"].value == pytest.approx(worked.seconds * 3.6 / 3600)
    assert found["share of"]["tokens"] == made.tokens
    assert "of the gain | 12.5 % [" in module.show(results) and json.loads(json.dumps(module.plain(results)))["seed"] == 3
    free = module.measure(run)["rungs"]["001-distillation"]
    assert free["a task"]["teacher"]["dollars"].value == 0.0 and np.isnan(free["share of"]["dollars"].value)


def test_the_folder_of_a_run_is_a_model_what_it_ships(finished: Path, tmp_path: Path) -> None:
    assert load_model(str(finished / "runs/base")).path == str((finished / "runs/base/rungs/001-rejection-sampling/model").resolve())
    (tmp_path / "new/rungs").mkdir(parents=True)
    (tmp_path / "new/run.yaml").write_text("model: x")
    with pytest.raises(ModelError, match="has kept nothing yet"):
        shipped(tmp_path / "new")
    with pytest.raises(RunError, match="no run in"):
        distilling(tmp_path, "best-of-8", {})


def test_given_again_it_makes_nothing_twice(finished: Path) -> None:
    folder = finished / "runs/base-best-of-8"
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl") if path.name != "ledger.jsonl"}
    climb(load_settings(folder / "run.yaml", {}), finished / "runs")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


# ---------------------------------------------------------------- another model as teacher


def test_a_teacher_of_another_lineage_needs_terms_before_the_first_token(tmp_path: Path) -> None:
    scripted_model(tmp_path / "owl", skill=0.9, name="owl")
    with pytest.raises(Unsettled, match=r"what the teacher owl says.*nobody settled.*terms: \[\{teacher: owl"):
        climb(taught(tmp_path, teacher=str(tmp_path / "owl")), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("trajectories"))


def test_a_better_model_teaches_beside_a_self_trained_control_and_its_terms_ride_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_model(tmp_path / "owl", skill=0.95, name="owl")
    asked, sample = Counter[str](), Bench.sample

    def counted(self: Bench, name: str, *given: Any, **named: Any) -> Pool:
        asked[name] += 1
        return sample(self, name, *given, **named)

    monkeypatch.setattr(Bench, "sample", counted)
    settings = taught(tmp_path, teacher=str(tmp_path / "owl"), terms=TERMS)
    planned = plan(settings, tmp_path / "runs", measure=0)
    climb(settings, tmp_path / "runs")
    assert [asked[f"rungs/001-distillation{end}/sampling"] for end in ("", "-control")] == [1, 1]
    run = tmp_path / "runs/taught"
    rung, control = rung_of(run), rung_of(run, "001-distillation-control")
    assert rung.distilled is not None and rung.distilled.teacher.who == "owl" and rung.distilled.kept.value > 0
    assert rung.training is not None and control.training is not None and control.control
    assert 0 <= control.training.trained_tokens - rung.training.trained_tokens < 40  # the last row may overshoot
    assert rung.selection is not None and control.selection is not None
    theirs, own = ({key.task for key in one.selection.kept if key.sampling != "recorded"} for one in (rung, control))  # type: ignore[union-attr]
    assert own and own <= theirs
    assert control.decision is not None and control.decision.reasons[0].startswith("self-trained on as many tokens")
    assert rung.transfer is not None and rung.transfer.teacher.agent == "owl" and rung.transfer.after.tries == 48
    assert rung.faults is not None and {one.other for one in rung.faults.same} == {"before", "control"}
    trained, beside = (load_model(str(run / f"rungs/001-distillation{end}/model")) for end in ("", "-control"))
    assert {terms.teacher for terms in trained.lineage.terms} == {"owl", "expert"}
    assert {terms.teacher for terms in beside.lineage.terms} == {"expert"}
    made = {str(path.parent.relative_to(run)) for path in run.rglob(MANIFEST)} - {"demonstrations"}
    assert {stage.name for stage, _, _ in planned.stages} == made
    bill = read_json(run / "spent.json", Bill)
    calls = {stage.name: spent.calls for stage, spent, _ in planned.stages if spent.calls}
    assert calls == {name: spent.calls for name, spent in bill.stages.items()}


def test_a_plan_knows_the_teachers_price(tmp_path: Path) -> None:
    more = {"terms": [{**TERMS[0], "teacher": "big"}], "spending": {"prices": {"big": {"prompt": 10, "sampled": 100}}}}
    settings = taught(tmp_path, teacher={"model": "https://llm.example.invalid/v1#big", "agent": {"agent": "best-of-n", "n": 3}}, **more)
    found = plan(settings, tmp_path / "runs", measure=0)
    spent = {stage.name: spent for stage, spent, _ in found.stages}
    assert spent["rungs/001-distillation/teacher/dev"].calls == 24 * 2 * 3
    assert spent["rungs/001-distillation/sampling"].dollars > 0 == spent["rungs/001-distillation/dev"].dollars
    assert any("3 times what the student's is" in line and "as set in spending.prices" in line for line in found.said)


def test_a_weaker_teacher_has_nothing_to_copy_and_the_line_says_so_with_numbers(tmp_path: Path) -> None:
    scripted_model(tmp_path / "owl", skill=0.0, name="owl")
    climb(taught(tmp_path, teacher=str(tmp_path / "owl"), terms=TERMS), tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.decision is not None and rung.decision.outcome == "refuse" and rung.training is None
    reason = rung.decision.reasons[0]
    assert "the teacher owl passes 0.0% [0.0%" in reason and "paired gain -" in reason and "over 24 families, worse" in reason
    assert "the teacher solves 0; no behaviour, nothing to copy" in reason
    assert rung.teacher is not None and not (tmp_path / "runs/taught/rungs/001-distillation/sampling").exists()


ENGINES = """
from sharpen.errors import PolicyError
from sharpen.policies.base import Turn
from sharpen.records import Message, TurnTokens
class Silent:
    gives_token_ids = False
    def __init__(self, model):
        self.name = model.name
    async def complete(self, conversation, sampling):
        return Turn(message=Message(role="assistant", content=" "), tokens=TurnTokens(stop="stop"))
    async def close(self):
        pass
class Broken(Silent):
    async def complete(self, conversation, sampling):
        raise PolicyError("no route to it")
"""


@pytest.mark.parametrize("whose", ["its own folder", "a copy"])
def test_a_teacher_that_is_the_student_is_asked_nothing(whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings_of(tmp_path)
    if whose == "a copy":
        shutil.copytree(tmp_path / "student", tmp_path / "copy")
    teacher = tmp_path / ("copy" if whose == "a copy" else "student")
    assert main(["distil", str(path), "--teacher", str(teacher), "--name", "same", "--runs", str(tmp_path / "runs")]) == EXIT_REFUSED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sharpen: nothing was copied: the teacher") and "is the student itself" in said and "best-of-8" in said
    assert not (tmp_path / "runs/same/rungs/001-distillation/teacher").exists()


def test_the_student_with_more_room_to_answer_is_another_teacher(tmp_path: Path) -> None:
    for most, same in ((None, True), (32, True), (64, False)):
        settings = taught(tmp_path, teacher={"model": str(tmp_path / "student"), "max_tokens": most})
        run = Run.open(tmp_path / f"runs-{most}", "")
        with open_bench(settings, run, load_tasks(settings.tasks), load_model(settings.model), Live(), str) as bench:
            assert is_student(bench, Prompted(bench.base)) is same
        run.close()


@pytest.mark.parametrize("engine", ["Silent", "Broken"])
def test_a_teacher_that_answers_nothing_is_named(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines.py").write_text(ENGINES)
    scripted_model(tmp_path / "owl", skill=0.9, name="owl")
    teacher = {"model": str(tmp_path / "owl"), "engine": {"engine": "plugin", "name": f"engines.py:{engine}"}}
    settings = taught(tmp_path, teacher=teacher, terms=TERMS)
    if engine == "Broken":
        with pytest.raises(PolicyError, match="the teacher owl does not answer: 8 tries in a row broke, the last with: no route to it"):
            climb(settings, tmp_path / "runs")
        return
    climb(settings, tmp_path / "runs")
    decision = rung_of(tmp_path / "runs/taught").decision
    assert decision is not None and decision.outcome == "refuse" and "all 48 of its tries are empty" in decision.reasons[0]


class Owl(BaseHTTPRequestHandler):
    """A server of chat completions that does sums, for programs that ask for CALC or ANSWER too."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        value = arithmetic(next(one["content"] for one in reversed(body["messages"]) if one["role"] == "user"))
        said = f"ANSWER {value}" if "ANSWER n" in body["messages"][0]["content"] else str(value)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(json.dumps([body["messages"], body.get("tools")])), "completion_tokens": 4}
        sent = json.dumps({"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def owl() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Owl) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1#owl"
        server.shutdown()
        thread.join()


FEW = {**SMALL["tasks"], "splits": {"demo": 2, "train": 6, "dev": 6}}  # type: ignore[dict-item]
PROGRAM = str(Path(__file__).parent.parent / "examples/harness/own_agent.py")


@pytest.mark.parametrize("who", ["an endpoint", "an ensemble", "an outside program"])
def test_any_agent_teaches(who: str, owl: str, tmp_path: Path) -> None:
    scripted_model(tmp_path / "hawk", skill=0.5, name="hawk")
    teacher: dict[str, Any] = {"model": owl}
    if who == "an ensemble":
        teacher = {"model": str(tmp_path / "hawk"), "agent": {"agent": "ensemble", "members": [{"model": owl}]}}
    if who == "an outside program":
        teacher["harness"] = {"command": [sys.executable, PROGRAM, "{prompt}"]}
    settings = taught(
        tmp_path,
        teacher=teacher,
        tasks=FEW,
        terms=[*TERMS, {**TERMS[0], "teacher": "hawk"}],
        evaluation=SMALL["evaluation"] | {"n": 1, "k": [1]},
    )
    climb(msgspec.structs.replace(settings, ladder=msgspec.structs.replace(settings.ladder, control=False)), tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.distilled is not None and rung.distilled.teacher.rate.value == 1.0
    assert rung.selection is not None and rung.selection.rows is not None and rung.kept == 6
    speaks = {"an endpoint": "owl", "an ensemble": "hawk + owl", "an outside program": "owl in"}[who]
    assert rung.distilled.teacher.who.startswith(speaks) and rung.distilled.teacher.turns == (2 if who == "an ensemble" else 1)
    trained = load_model(str(tmp_path / "runs/taught/rungs/001-distillation/model"))
    assert {terms.teacher for terms in trained.lineage.terms} == {
        "expert",
        *(name for name in ("owl", "hawk") if name in rung.selection.rows.by),
    }
    assert "owl" in rung.selection.rows.by


SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}}
SEARCHES = f"""
import json, os, sys, urllib.request
body = {{"model": os.environ["OPENAI_MODEL"], "messages": [{{"role": "user", "content": sys.argv[1]}}], "tools": [{SEARCH!r}]}}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(), {{"Content-Type": "application/json"}})
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""


def test_a_program_with_other_tools_is_refused_after_one_try(owl: str, tmp_path: Path) -> None:
    (tmp_path / "searches.py").write_text(SEARCHES)
    teacher = {"model": owl, "harness": {"command": [sys.executable, str(tmp_path / "searches.py"), "{prompt}"]}}
    climb(taught(tmp_path, teacher=teacher, tasks=FEW, terms=TERMS), tmp_path / "runs")
    decision = rung_of(tmp_path / "runs/taught").decision
    assert decision is not None and decision.outcome == "refuse"
    (tried,) = (tmp_path / "runs/taught/rungs/001-distillation/teacher/dev/trajectories").glob("*.jsonl")
    assert len(tried.read_text().splitlines()) == 1
    assert (
        "owl in python" in decision.reasons[0]
        and "works with other tools than the student: search, which the student has not, nor any other" in decision.reasons[0]
    )


def test_recorded_tries_with_other_tools_are_refused_unless_they_are_played_again(tmp_path: Path) -> None:
    lines = []
    for task in load_tasks(load_settings(settings_of(tmp_path, tasks=FEW), {}).tasks).tasks:
        call = {"id": "c", "type": "function", "function": {"name": "search", "arguments": "{}"}}
        asked = [{"role": one.role, "content": one.content} for one in task.prompt]
        answer = {"role": "assistant", "content": str(arithmetic(task.prompt[-1].content))}
        looked = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "found"}]
        if task.split != "demo":
            lines.append(json.dumps({"messages": [*asked, *looked, answer], "tools": [SEARCH]}))
    (tmp_path / "traces.jsonl").write_text("\n".join(lines))
    teacher = {"recorded": {"path": str(tmp_path / "traces.jsonl"), "replay": False}}
    climb(taught(tmp_path, teacher=teacher, tasks=FEW, terms=[{**TERMS[0], "known_as": ["imported"]}]), tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.decision is not None and rung.decision.outcome == "refuse" and rung.teacher is not None
    assert "search, which the student has not" in rung.decision.reasons[0] and "replay: true" in rung.decision.reasons[0]
    assert not (tmp_path / "runs/taught/rungs/001-distillation/sampling").exists()


def test_on_policy_wants_a_model_whose_weights_are_here_and_names_what_to_use_instead(tmp_path: Path) -> None:
    climb(taught(tmp_path, teacher="best-of-8", distillation={"way": "on_policy"}), tmp_path / "runs")
    decision = rung_of(tmp_path / "runs/taught").decision
    assert decision is not None and decision.outcome == "refuse"
    assert "a choice among several tries" in decision.reasons[0] and "way: trajectories" in decision.reasons[0]


def test_on_policy_cannot_train_what_is_no_local_model_and_says_so_before_the_teacher_is_asked(tmp_path: Path) -> None:
    scripted_model(tmp_path / "owl", skill=0.9, name="owl")
    with pytest.raises(ModelError, match="is a scripted model and cannot be trained here"):
        climb(taught(tmp_path, teacher=str(tmp_path / "owl"), terms=TERMS, distillation={"way": "on_policy"}), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("teacher"))


def unaudited() -> dict[str, Any]:
    """Sums in the working directory, judged by a function that nobody vouches for."""
    Path("v.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    rows = [{"prompt": f"Calculate {n} + {m}.", "reference": str(n + m)} for n in range(8) for m in range(8)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": "tasks.jsonl", "verifier": "v.py:verify", "splits": {"train": 32, "dev": 24}, "max_overlap": 1}


def test_what_a_verifier_keeps_that_nobody_audited_does_not_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = unaudited()
    path = settings_of(tmp_path, tasks=source)
    flags = ["distil", str(path), "--teacher", "best-of-8", "--name", "mine"]
    assert main(flags) == EXIT_REFUSED
    decision = rung_of(Path("runs/mine")).decision
    assert decision is not None and decision.outcome == "refuse"
    assert "neither exact nor audited" in decision.reasons[0] and "sharpen label runs/mine --rung 001-distillation" in decision.reasons[0]
    assert main([*flags, "--trust-unaudited-verifier"]) == 0
    student = load_model("runs/mine/rungs/001-distillation/model")
    assert any("nobody audited" in banner for banner in student.lineage.banners)


def test_the_teachers_own_answers_that_on_policy_mixes_in_go_through_the_same_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = unaudited()
    scripted_model(tmp_path / "owl", skill=0.95, name="owl")
    how = {"way": "on_policy", "on_policy": {"lmbda": 0.5}}
    climb(taught(tmp_path, teacher=str(tmp_path / "owl"), terms=TERMS, distillation=how, tasks=source), tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.decision is not None and rung.decision.outcome == "refuse" and rung.training is None
    assert "neither exact nor audited" in rung.decision.reasons[0]
    purity = read_json(tmp_path / "runs/taught/rungs/001-distillation/purity.json", RoundPurity)
    assert len(purity.kept) == len({key.task for key in purity.kept}) > 20  # one answer a task is all that is mixed in


# ---------------------------------------------------------------- recorded trajectories


def write_traces(path: Path, settings: RunSettings, right: float = 1.0, splits: tuple[str, ...] = ("train", "dev")) -> None:
    """What somebody answered, in TRL's format, which names nobody."""
    rng = random.Random(5)
    lines = []
    for task in load_tasks(settings.tasks).tasks:
        if task.split not in splits:
            continue
        question = task.prompt[-1].content
        answer = str(arithmetic(question)) if rng.random() < right else "I do not know."
        asked = [{"role": message.role, "content": message.content} for message in task.prompt]
        lines.append(json.dumps({"messages": [*asked, {"role": "assistant", "content": answer}]}))
    path.write_text("\n".join(lines) + "\n")


def test_recorded_trajectories_without_provenance_teach_nobody(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.jsonl", load_settings(settings_of(tmp_path), {}))
    with pytest.raises(Unsettled, match=r"48 recorded tries of the teacher would train .* words of nobody knows whom"):
        climb(taught(tmp_path, teacher=str(tmp_path / "traces.jsonl")), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("trajectories"))


def test_recorded_trajectories_teach_once_somebody_said_whose_they_are(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.jsonl", load_settings(settings_of(tmp_path), {}), right=0.9)
    settings = taught(tmp_path, teacher=str(tmp_path / "traces.jsonl"), terms=[{**TERMS[0], "known_as": ["imported"]}])
    climb(settings, tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.distilled is not None and rung.distilled.gained.printed.value > 0.3
    assert rung.distilled.teacher.tries == 24 and rung.distilled.teaching.calls == 0
    assert "nobody recorded what that cost the teacher" in (tmp_path / "runs/taught/report.html").read_text()
    assert rung.kept > 10 and rung.selection is not None and rung.selection.rows is not None
    assert rung.selection.rows.rendered_because["a teacher's, which read another prompt than the student will"] == rung.kept
    model = load_model(str(tmp_path / "runs/taught/rungs/001-distillation/model"))
    assert {terms.teacher for terms in model.lineage.terms} == {"owl", "expert"}


def test_recorded_trajectories_of_training_tasks_alone_cannot_be_measured(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.jsonl", load_settings(settings_of(tmp_path), {}), splits=("train",))
    climb(taught(tmp_path, teacher=str(tmp_path / "traces.jsonl"), terms=[{**TERMS[0], "known_as": ["imported"]}]), tmp_path / "runs")
    decision = rung_of(tmp_path / "runs/taught").decision
    assert decision is not None and decision.outcome == "refuse" and "has no try at a dev task" in decision.reasons[0]


@pytest.mark.real
def test_the_real_model_is_taught_by_recorded_trajectories(tmp_path: Path) -> None:
    """SmolLM2-135M learns four sums that somebody recorded, in one epoch, and is measured after it on the engine that sampled before."""
    tasks = {**SMALL["tasks"], "splits": {"train": 4, "dev": 4}}  # type: ignore[dict-item]
    how = {
        "evaluation": {"n": 1, "k": [1], "max_tokens": 8},
        "training": {"epochs": 1},
        "ladder": {"rungs": ["distillation"], "control": False},
    }
    terms = [{**TERMS[0], "known_as": ["imported"]}]
    path = settings_of(tmp_path, "taught", tasks=tasks, terms=terms, teacher={"recorded": {"path": str(tmp_path / "traces.jsonl")}}, **how)
    settings = load_settings(path, {"model": "smollm2-135m-instruct"})
    write_traces(tmp_path / "traces.jsonl", settings)
    climb(settings, tmp_path / "runs")
    rung = rung_of(tmp_path / "runs/taught")
    assert rung.distilled is not None and rung.training is not None and rung.selection is not None and rung.selection.rows is not None
    assert rung.distilled.teacher.rate.value == 1.0 and rung.distilled.after.tries == 4 and rung.distilled.after.sampled_tokens > 0
    assert rung.selection.rows.by == {"imported": 4} and rung.training.trained_tokens >= 8
    assert rung.training.losses and 0 < rung.training.losses[-1] < 20
    student, base = load_model(str(tmp_path / "runs/taught/rungs/001-distillation/model")), load_model("smollm2-135m-instruct")
    assert student.fingerprint != base.fingerprint == student.lineage.parent
    assert [one.teacher for one in student.lineage.terms] == ["owl"]


# ---------------------------------------------------------------- other tools, other templates


def try_of(turns: tuple[TurnTokens, ...] = (), **more: Any) -> Trajectory:
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    messages = (Message(role="user", content="1 + 1"), Message(role="assistant", content="2"))
    return Trajectory(**{"key": key, "agent": "m", "messages": messages, "stop": "done", "turns": turns, **more})


def pool_of(trajectory: Trajectory) -> Pool:
    return Pool({}, (trajectory.key,), {trajectory.key: trajectory}, {})


def tool(name: str, **properties: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def test_a_teacher_with_other_tools_is_told_from_one_with_the_same() -> None:
    student = pool_of(try_of(tools=(tool("add", a="int"), tool("look"))))
    assert other_tools(pool_of(try_of(tools=(tool("look"), tool("add", a="int")))), student) == ""
    assert other_tools(pool_of(try_of()), student) == ""
    assert other_tools(pool_of(try_of(tools=(tool("search"),))), student) == "search, which the student has not"
    assert other_tools(pool_of(try_of(tools=(tool("search"),))), pool_of(try_of())) == "search, which the student has not, nor any other"
    assert "add, which take other arguments" in other_tools(pool_of(try_of(tools=(tool("add", a="str"),))), student)
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="rm", arguments="{}"),))  # nowhere described, and called
    assert other_tools(pool_of(try_of(messages=(Message(role="user", content="x"), call))), student).startswith("rm,")
    slip = try_of(tools=(tool("look"),), messages=(Message(role="user", content="x"), call))
    assert other_tools(pool_of(slip), student) == ""  # a call of what it never had is its own mistake
    assert other_tools(pool_of(try_of(tools=(tool("rm"),))), pool_of(slip)).startswith("rm,")
    known = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments="{}"),))
    assert other_tools(pool_of(try_of(messages=(Message(role="user", content="x"), known))), student) == ""


def test_token_ids_are_taken_only_where_the_student_would_have_read_the_same_prompt() -> None:
    template = ScriptedTemplate()
    asked = tuple(template.prompt((Message(role="user", content="1 + 1"),)))
    same = try_of((TurnTokens(prompt=asked, output=tuple(b"2")),))
    assert as_read(same, template) is same
    other = try_of((TurnTokens(prompt=(*b"Q: 1 + 1 A:",), output=tuple(b"2")),))  # reads well, under another template
    assert as_read(other, template).turns == ()
    assert as_read(try_of((TurnTokens(output=tuple(b"2")),)), template).turns == ()
    assert as_read(try_of((same.turns[0], same.turns[0])), template).turns == ()  # more turns than answers


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ladder": {"rungs": ["distillation"]}}, "holds distillation, but there is no teacher; set teacher: best-of-8"),
        ({"teacher": "best-of-8", "ladder": {"rungs": ["sft"]}}, "ladder.rungs lacks distillation"),
        ({"teacher": {"modle": "x"}}, "unknown setting 'teacher.modle'; did you mean 'model'"),
        ({"teacher": {}}, "the teacher is the student itself"),
        ({"teacher": "best-of-1"}, "the teacher is the student itself"),
        ({"teacher": {"model": "x", "recorded": {"path": "y"}}}, "they take no model"),
        ({"teacher": {"agent": {"agent": "best-of-n", "plays": "sampling"}}}, "a teacher plays as one agent everywhere"),
        ({"teacher": " "}, "teacher is empty"),
        ({"teacher": {"model": "x", "max_tokens": 0}}, "max_tokens is 0"),
        ({"teacher": "x", "distillation": {"n": 0}}, "n is 0"),
        ({"teacher": "x", "distillation": {"way": "on-policy"}}, "did you mean 'on_policy'"),
        ({"teacher": "x", "distillation": {"n": 3}, "sampling": {"n": 1, "temperature": 0}}, "gives the teacher the same try 3 times"),
        ({"teacher": "best-of-8", "sampling": {"n": 1, "temperature": 0}}, "the same try 8 times"),
        ({"teacher": "x", "selection": {"short_share": 1.5}}, "short_share is 1.5"),
        ({"teacher": "x", "selection": {"short_share": 0.5, "shortest_first": True}}, "leave out one of the two"),
        ({"teacher": "x", "selection": {"short_share": 0.5, "weighting": "mean_pass_rate"}}, "keeps every pass"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(settings_of(tmp_path, **{"ladder": {"rungs": ["distillation"]}, **given}), {})
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_in_a_word(tmp_path: Path) -> None:
    assert in_words("best-of-8") == {"agent": {"agent": "best-of-n", "n": 8}}
    assert in_words("best-of-4 of runs/x") == {"agent": {"agent": "best-of-n", "n": 4}, "model": "runs/x"}
    assert in_words("https://host/v1#big") == {"model": "https://host/v1#big"}
    (tmp_path / "t.jsonl").write_text("{}")
    assert in_words(str(tmp_path / "t.jsonl")) == {"recorded": {"path": str(tmp_path / "t.jsonl")}}
    found = load_settings(settings_of(tmp_path), {"teacher": "best-of-8", "teacher.max_tokens": "9", "ladder.rungs": "[distillation]"})
    assert found.teacher is not None and found.teacher.tries == 8 and found.teacher.max_tokens == 9 and found.teacher.itself
    assert not Teacher(model="x").itself and Teacher(model="x").tries == 1


def test_the_teachers_on_the_page_are_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/distillation.md").read_text()
    lines = [line.split("|")[2:4] for line in page.splitlines() if line.startswith("| ") and "`{" in line]
    assert len(lines) == 7
    for word, full in lines:
        for given in filter(None, (word.strip(" `"), yaml.safe_load(full.strip(" `")))):
            settings = load_settings(settings_of(tmp_path, teacher=given, ladder={"rungs": ["distillation"]}), {})
            assert settings.teacher is not None


# ---------------------------------------------------------------- numbers


def test_a_ratio_has_fiellers_interval_where_the_teacher_is_surely_better() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.6, 0.3, 30), rng.normal(0.3, 0.3, 30)
    found = ratio_of_means({str(at): [(a, b)] for at, (a, b) in enumerate(zip(x, y, strict=True))})
    t = float(stdtrit(29, 0.975))
    tried = np.linspace(-2, 4, 60001)
    off = y[:, None] - x[:, None] * tried
    inside = tried[np.abs(off.sum(axis=0)) <= t * np.sqrt(30 * off.var(axis=0, ddof=1))]  # by its definition
    assert found.value == pytest.approx(y.sum() / x.sum())
    assert (found.low, found.high) == (pytest.approx(inside[0], abs=2e-4), pytest.approx(inside[-1], abs=2e-4))
    weak = ratio_of_means({str(at): [(a, b)] for at, (a, b) in enumerate(zip(x - x.mean() + 0.01, y, strict=True))})
    assert weak.value > 1 and weak.low != weak.low and weak.high != weak.high
    assert ratio_of_means({"a": [(-1.0, 1.0)], "b": [(-1.0, 0.0)]}).value != 0 and ratio_of_means({}).n == 0
    alike = ratio_of_means({"a": [(1.0, 0.5)], "b": [(1.0, 0.5)]})
    assert alike.value == 0.5 and alike.low != alike.low


def test_the_share_of_a_teachers_gain_is_of_the_same_tasks() -> None:
    def results(*passes: int, errors: int = 0) -> list[TaskResult]:
        return [TaskResult(task=str(at), family=str(at), samples=4, passes=n, errors=errors) for at, n in enumerate(passes)]

    before, teacher, after = results(0, 0, 1, 0, 2), results(4, 2, 3, 4, 4), results(2, 1, 3, 0, 3)
    found = share_of_gain(before, teacher, after)
    assert found.value == pytest.approx((9 - 3) / (17 - 3)) and found.low < found.value < found.high
    assert share_of_gain(before, before, after).value != share_of_gain(before, before, after).value  # it gained nothing
    assert share_of_gain(before, results(4, 4, 4, 4, 4, errors=4), after).n == 0


def test_short_and_long_traces_are_mixed_by_task() -> None:
    keys = [SampleKey(model="m", task=f"t{task}", environment="e", sampling="s", index=at) for task in range(40) for at in range(4)]
    tries = {key: replace(try_of(messages=(Message(role="user", content="q"), Message(role="assistant", content="x" * (key.index + 1)))),
                          key=key, actions=(str(key.index),)) for key in keys}  # fmt: skip
    pool = Pool({}, tuple(keys), tries, {key: Verdict(key=key, outcome="pass") for key in keys})

    def lengths(share: float) -> list[int]:
        return [key.index for key in select(pool, SelectionSettings(cap=1, short_share=share), 0).kept]

    assert set(lengths(1.0)) == {0} and set(lengths(0.0)) == {3}
    assert set(lengths(0.5)) == {0, 3} and 10 < lengths(0.5).count(0) < 30
    assert lengths(0.5) == lengths(0.5)


def test_a_distillation_that_is_forked_comes_to_its_own_conclusions(finished: Path) -> None:
    climb(load_settings(finished / "runs/base-best-of-8/run.yaml", {"ladder.alpha": "0.01"}), finished / "runs", "forked")
    old, new = (rung_of(finished / "runs" / name) for name in ("base-best-of-8", "forked"))
    assert old.distilled is not None and new.distilled is not None and old.distilled.teacher.rate == new.distilled.teacher.rate
    shutil.rmtree(finished / "runs/forked")
