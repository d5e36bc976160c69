"""``sharpen advise`` on real run folders: what it buys the run finds made, what is there is not bought, and what was made by hand is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from msgspec.structs import replace

from conftest import FEW, Ended, benchmark
from sharpen.advice import ADVICE, Told, advise
from sharpen.cli import main
from sharpen.errors import RunError, SettingsError
from sharpen.policies.meter import Bill
from sharpen.policies.scripted import scripted_model
from sharpen.records import Advice, Evaluation
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.store.files import read_json, write_json

SMALL = "{demo: 8, train: 16, dev: 16, test: 4}"


def calls(folder: Path) -> int:
    return read_json(folder / "spent.json", Bill).total.calls


def standing(told: Told) -> dict[str, str]:
    return {option.action: option.standing for option in told.advice.options}


def test_it_spends_its_share_and_the_run_finds_it_made(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(
        scripted, {"ladder.rungs": "[rejection-sampling]", "ladder.control": "false", "advice.budget": "0.05", "tasks.splits": SMALL}
    )
    told = advise(settings, tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    assert 0 < told.bought.tries == calls(folder)
    assert told.bought.tokens < 0.1 * told.bought.run
    assert told.seen.rate is not None and told.seen.pass_n is not None and told.seen.samples_per_task == 4
    assert told.advice.recommendation.action in ("sft", "rejection-sampling")
    assert read_json(folder / ADVICE, Advice) == told.advice
    again = advise(settings, tmp_path / "runs")
    assert again.bought.tries == 0 and calls(folder) == told.bought.tries
    assert again.seen.rate == told.seen.rate and again.seen.pass_n == told.seen.pass_n
    other = tmp_path / "unadvised"
    for runs in (tmp_path / "runs", other):
        climb(settings, runs)
    assert calls(folder) == calls(other / "ladder"), "the run bought what the advice had bought"
    for name in ("000-base", "001-rejection-sampling"):
        ours, theirs = (read_json(runs / "ladder/rungs" / name / "evaluation.json", Evaluation) for runs in (tmp_path / "runs", other))
        assert ours.tasks == theirs.tasks


def test_a_run_that_is_there_is_read_and_nothing_is_bought(ended: Ended) -> None:
    before = calls(ended.folder)
    told = advise(load_settings(ended.settings, {"goal.value": "0.99"}), ended.runs)
    assert told.bought.tries == 0 and calls(ended.folder) == before
    assert [one.method for one in told.seen.tried][:3] == ["few-shot", "sft", "rejection-sampling"]
    assert told.seen.tasks_sampled == 40 and told.seen.samples_per_task == 4
    assert standing(told)["sft"] == "done" and standing(told)["few-shot"] == "done"


def test_a_rung_that_was_made_by_hand_is_judged_from_what_lies_there(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, {"ladder.rungs": "[sft]", "tasks.splits": FEW})
    climb(settings, tmp_path / "runs")
    rung = tmp_path / "runs/ladder/rungs/001-sft"
    (rung / "decision.json").unlink()
    (rung / "stage.json").unlink()
    told = advise(settings, tmp_path / "runs")
    assert any("001-sft was evaluated but not decided on" in line for line in told.said)
    assert [one.method for one in told.seen.tried] == ["sft"]
    base = read_json(tmp_path / "runs/ladder/rungs/000-base/evaluation.json", Evaluation)
    write_json(rung / "evaluation.json", replace(base, tasks=base.tasks[:3]))
    told = advise(settings, tmp_path / "runs")
    assert told.seen.tried[0].outcome == "undecided" and "same tasks on both sides" in " ".join(told.said)
    (rung / "evaluation.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluation\.json cannot be read"):
        advise(settings, tmp_path / "runs")


def test_rungs_without_their_settings_are_refused(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW})
    climb(settings, tmp_path / "runs")
    (tmp_path / "runs/ladder/run.yaml").unlink()
    with pytest.raises(RunError, match=r"holds rungs but no run\.yaml"):
        advise(settings, tmp_path / "runs")


def taught(tmp_path: Path, skill: float, training: str | None) -> dict[str, str]:
    """What the settings say of a teacher, a scripted model of that ``skill``, and of its terms."""
    scripted_model(tmp_path / "owl", skill=skill, name="owl")
    terms = {"teacher": "owl", "licence": "ours", "training": training, "conditions": [], "settled_by": "ann", "settled_on": "2026-01-02"}
    return {
        "teacher": str(tmp_path / "owl"),
        "ladder.rungs": "[sft, distillation]",
        "ladder.control": "false",
        "advice.budget": "0.5",
        "terms": json.dumps([{**terms, "evidence": "https://example.org/owl"}] if training else []),
    }


@pytest.mark.parametrize(("skill", "outcome"), [(0.9, "advised"), (0.02, "refused")])
def test_a_teacher_is_asked_and_the_run_finds_it_asked(scripted: Path, tmp_path: Path, skill: float, outcome: str) -> None:
    settings = load_settings(scripted, taught(tmp_path, skill, "allowed"))
    told = advise(settings, tmp_path / "runs")
    assert standing(told)["distillation"] == outcome
    teacher, folder = told.seen.teacher, tmp_path / "runs/ladder"
    assert teacher is not None and teacher.gain is not None and teacher.name == "owl" and not teacher.same
    stage = "rungs/002-distillation/teacher/dev"
    asked = read_json(folder / "spent.json", Bill).stages[stage].calls
    assert 2 <= asked <= 40
    assert advise(settings, tmp_path / "runs").bought.tries == 0
    climb(settings, tmp_path / "runs")
    assert read_json(folder / "spent.json", Bill).stages[stage].calls == 40 * 4
    again = advise(settings, tmp_path / "runs").seen.teacher  # by what the run measured, over what it ships
    assert again is not None and again.gain is not None and again.gain.printed.n == 40


@pytest.mark.parametrize(("training", "standing_", "terms"), [(None, "open", "unknown"), ("forbidden", "refused", "forbidden")])
def test_a_teacher_whose_words_may_not_train_is_not_asked(
    scripted: Path, tmp_path: Path, training: str | None, standing_: str, terms: str
) -> None:
    told = advise(load_settings(scripted, taught(tmp_path, 0.9, training)), tmp_path / "runs")
    assert told.seen.teacher is not None and (told.seen.teacher.terms, told.seen.teacher.gain) == (terms, None)
    assert standing(told)["distillation"] == standing_
    assert "rungs/002-distillation/teacher/dev" not in read_json(tmp_path / "runs/ladder/spent.json", Bill).stages


def test_without_a_verifier_demonstrations_or_a_teacher_nothing_is_bought(tmp_path: Path) -> None:
    scripted_model(tmp_path / "base", skill=0.5)
    data = tmp_path / "tasks.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Calculate {i} + 1.", "reference": str(i + 1)}) + "\n" for i in range(40)))
    settings = tmp_path / "r.yaml"
    source = {"source": "jsonl", "path": str(data), "splits": {"train": 20, "dev": 20}}
    settings.write_text(yaml.safe_dump({"model": str(tmp_path / "base"), "tasks": source}))
    told = advise(load_settings(settings, {}), tmp_path / "runs")
    assert told.advice.recommendation.action == "measure" and "verifier" in told.advice.recommendation.reason.says
    assert standing(told)["rejection-sampling"] == standing(told)["expert-iteration"] == "refused"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("train", "budget", "standing_", "action"), [(40, "1", "refused", "curriculum"), (12, "0.5", "open", "rejection-sampling")]
)
def test_a_model_that_never_succeeds(scripted: Path, tmp_path: Path, train: int, budget: str, standing_: str, action: str) -> None:
    scripted_model(tmp_path / "hopeless", skill=0.0)
    over = {
        "model": str(tmp_path / "hopeless"),
        "tasks.splits": f"{{train: {train}, dev: 12, test: 4}}",
        "advice.budget": budget,
        "ladder.rungs": "[rejection-sampling]",
    }
    told = advise(load_settings(scripted, over), tmp_path / "runs")
    assert told.seen.demonstrations == 0 and told.seen.hintable == told.seen.tasks_sampled > 0
    assert standing(told)["rejection-sampling"] == standing_ and told.advice.recommendation.action == action


def test_two_tasks_only(scripted: Path, tmp_path: Path) -> None:
    told = advise(load_settings(scripted, {"tasks.splits": "{train: 2, dev: 2}"}), tmp_path / "runs")
    assert told.seen.tasks_sampled is not None and told.seen.tasks_sampled <= 2
    assert told.advice.recommendation.standing in ("advised", "open")


def test_it_is_printed_in_the_terminal(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(scripted), "--runs", str(tmp_path / "runs"), "--goal.value", "0.9"]) == 0
    out = capsys.readouterr().out
    for said in (
        "advice: SFT on the demonstrations",
        "would probably gain",
        "costs about",
        "would change it:",
        "else:",
        "RL: refused: supervision has not plateaued",
        "calls",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"goal.value": "1.5"}, r"goal\.value is 1\.5"),
        ({"goal.value": "0.5", "goal.metric": "pass@7"}, r"goal\.metric is 'pass@7'.*pass@1, pass@4"),
        ({"advice.budget": "0"}, r"advice\.budget"),
        ({"advice.patience": "0"}, r"advice\.patience"),
        ({"advice.hedroom": "0.1"}, "did you mean 'headroom'"),
    ],
)
def test_settings_that_cannot_be(scripted: Path, given: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_settings(scripted, given)


def test_contradictions_are_said(scripted: Path, tmp_path: Path) -> None:
    told = advise(load_settings(scripted, {"ladder.rungs": "[expert-iteration]", "sampling.n": "1"}), tmp_path / "runs")
    assert any("without rejection-sampling before it" in line for line in told.said)
    assert any("sampling.n is 1" in line for line in told.said)


def test_goal_and_advice_are_no_part_of_what_a_run_is(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW}), tmp_path / "runs")
    climb(
        load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW, "goal.value": "0.5", "advice.patience": "3"}), tmp_path / "runs"
    )


def test_the_worlds_truth_is_what_a_large_sample_shows() -> None:
    worlds = benchmark("worlds")
    off = []
    for seed in range(60):
        world = worlds.draw(seed)
        assert worlds.draw(seed).budget == world.budget
        model = worlds.attempt(world, worlds.attempt(world, worlds.start(world), "round"), "sft")
        assert worlds.attempt(world, model, "round", 1) == worlds.attempt(world, model, "round", 1)
        off.append(float(worlds.rates(world, model, "dev").mean()) - worlds.truth(world, model))
    assert abs(np.mean(off)) < 4 * np.std(off) / len(off) ** 0.5 + 1e-3
    never = next(world for seed in range(400) if (world := worlds.draw(seed)).never == 1.0)
    assert worlds.truth(never, worlds.start(never)) == 0


def test_with_an_adaptive_budget_only_fixed_tries_tell_and_the_run_goes_on(scripted: Path, tmp_path: Path) -> None:
    over = {
        "ladder.rungs": "[rejection-sampling]",
        "ladder.control": "false",
        "tasks.splits": SMALL,
        "sampling.budget": "{budget: adaptive, first: 2}",
    }
    told = advise(load_settings(scripted, over), tmp_path / "runs")
    assert told.seen.samples_per_task == 4 and told.seen.solved_later == 0
    climb(load_settings(scripted, over), tmp_path / "runs")
    again = advise(load_settings(scripted, over), tmp_path / "runs")
    assert again.bought.tries == 0 and again.seen.tasks_sampled == 16
    assert again.seen.samples_per_task == 2, "later waves stop at a success, so they are in no rate"
    assert again.seen.tasks_solved is not None and again.seen.tasks_solved + again.seen.solved_later <= 16
