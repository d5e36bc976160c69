"""A whole ladder on the scripted fake: what is kept and what is refused. What a killed run ends as: ``test_kills.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import FEW, Ended
from sharpen.errors import Refused, RunError, SettingsError
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import load_settings


def results(folder: Path) -> dict[str, object]:
    """Everything a run concludes, without what a clock says."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("decision.json", "selection.json", "evaluation.json", "evaluation-test.json"):
            value = json.loads(path.read_text())
            if isinstance(value, dict) and "cost" in value:
                value["cost"].pop("seconds")
            found[str(path.relative_to(folder))] = value
    return found


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(ended: Ended) -> None:
    older = (ended.folder / "run.yaml").read_text()
    assert older.count("  demo_tries: 1\n") == 1
    (ended.folder / "run.yaml").write_text(older.replace("  demo_tries: 1\n", ""))
    climb(load_settings(ended.settings, {}), ended.runs)
    with pytest.raises(RunError, match=r"other settings(.|\n)*\+  demo_tries: 0"):
        climb(load_settings(ended.settings, {"ladder.demo_tries": "0"}), ended.runs)


@pytest.mark.parametrize("text", ["", "garbage", "- a list\n", "a: [", "name: 3\n"])
def test_settings_of_a_run_that_cannot_be_read_are_other_settings(text: str, ended: Ended) -> None:
    (ended.folder / "run.yaml").write_text(text)
    with pytest.raises(RunError, match="was made with other settings"):
        climb(load_settings(ended.settings, {}), ended.runs)


def test_the_ladder_keeps_what_is_better_and_shows_what_the_verifier_was_worth(climbed: Ended) -> None:
    view = read_run(climbed.folder)
    by_name = {rung.name: rung for rung in view.rungs}
    assert list(by_name)[:5] == ["000-base", "001-few-shot", "002-sft", "003-rejection-sampling", "003-rejection-sampling-control"]
    real, control = by_name["003-rejection-sampling"], by_name["003-rejection-sampling-control"]
    assert real.decision is not None and real.decision.outcome == "keep"
    assert real.gain is not None and control.gain is not None
    assert real.gain.printed.value > control.gain.printed.value
    assert real.training is not None and control.training is not None
    assert 0 <= control.training.trained_tokens - real.training.trained_tokens < 40  # the last row may overshoot
    opened = [rung.name for rung in view.rungs if rung.test is not None]
    assert opened == ["000-base", next(rung.name for rung in view.rungs if rung.shipped)]
    for name, rung in by_name.items():
        assert rung.sampled_tokens > 0, name
    page = (climbed.folder / "report.html").read_text()
    assert "003-rejection-sampling-control" in page
    habits = by_name["002-sft"].transfer
    assert view.habits is not None and habits is not None and view.habits.measures["turns"].value == 1.0
    assert (habits.teacher, habits.before.tries, habits.after.tries, habits.trained) == (view.habits, 12, 12, 12)
    assert habits.gain.printed.n == 12 and habits.before.pass_rate.value < habits.after.pass_rate.value == 1.0  # learned by heart
    assert (
        "How they go about it" in page
        and "At 12 demonstrated tasks, all of which" in page
        and "was not measured on the student" not in page
    )


def test_a_fork_shows_only_what_it_concluded_itself(ended: Ended) -> None:
    """Once seen on a real run: another training seed's table held the first one's control and its test numbers."""
    changed = {"ladder.control": "false", "sampling.temperature": "0.9", "ladder.alpha": "0.0001"}
    climb(load_settings(ended.settings, changed), ended.runs, "other")
    before, after = (read_run(ended.runs / name).rungs for name in ("ladder", "other"))
    assert [rung.name for rung in before if rung.control] and not [rung.name for rung in after if rung.control]
    for rungs in (before, after):
        shipped = next(rung.name for rung in rungs if rung.shipped)
        assert {rung.name for rung in rungs if rung.test is not None} == {"000-base", shipped}


def test_every_rung_is_also_looked_at_off_task(scripted: Path, tmp_path: Path) -> None:
    panel = "{source: reasoning_gym, dataset: products, splits: {dev: 10}}"
    climb(load_settings(scripted, {"ladder.rungs": "[sft]", "ladder.panel": panel, "tasks.splits": FEW}), tmp_path / "runs")
    base, sft = read_run(tmp_path / "runs" / "ladder").rungs
    assert base.panel is not None and sft.panel is not None and base.panel.pass_at[1].n == sft.panel.pass_at[1].n == 10
    assert sft.decision is not None and "off-task panel" in sft.decision.reasons[-1]
    assert {task.task for task in sft.panel.tasks}.isdisjoint(task.task for task in sft.dev.tasks)  # type: ignore[union-attr]
    assert "off-task" in (tmp_path / "runs" / "ladder" / "report.html").read_text()


def test_every_try_is_kept_or_counted(climbed: Ended) -> None:
    selection = json.loads((climbed.folder / "rungs/003-rejection-sampling/selection.json").read_text())
    tries = 40 * 4 + 12
    assert len(selection["kept"]) + len(selection["left_out"]) == tries == sum(selection["counts"].values())


def test_a_finished_run_given_again_does_nothing_twice(ended: Ended) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in ended.folder.rglob("*.jsonl") if path.name != "ledger.jsonl"}
    shipped = climb(load_settings(ended.settings, {}), ended.runs)
    assert shipped.name.endswith(next(rung.name for rung in read_run(ended.folder).rungs if rung.shipped))
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_a_half_deleted_run_does_the_missing_again_and_nothing_else(ended: Ended) -> None:
    before = results(ended.folder)
    for path in (ended.folder / "rungs/002-sft/dev/trajectories").glob("*.jsonl"):
        path.unlink()
    (ended.folder / "rungs/002-sft/evaluation.json").unlink()
    climb(load_settings(ended.settings, {}), ended.runs)
    assert results(ended.folder) == before


def test_other_settings_are_refused_and_forked(ended: Ended) -> None:
    changed = load_settings(ended.settings, {"ladder.rounds": "1"})
    with pytest.raises(RunError, match="rounds: 1"):
        climb(changed, ended.runs)
    climb(changed, ended.runs, fork_to="other")
    assert (ended.runs / "other/report.html").exists()
    base = "rungs/000-base/dev/stage.json"
    assert (ended.runs / "other" / base).read_text() == (ended.folder / base).read_text()


def test_a_mistake_in_the_first_settings_is_mended_under_the_same_name(scripted: Path, tmp_path: Path) -> None:
    """Nothing was made with the wrong ones, so nothing can rest on them."""
    with pytest.raises(SettingsError, match="no data set 'chain_sun'"):
        climb(load_settings(scripted, {"tasks.dataset": "chain_sun"}), tmp_path / "runs")
    assert climb(load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW}), tmp_path / "runs").name == "rungs/000-base"


def test_tasks_that_never_succeed_are_refused_with_what_would_help(scripted: Path, tmp_path: Path) -> None:
    from sharpen.policies.scripted import scripted_model

    scripted_model(tmp_path / "hopeless", skill=0.0)
    over = {"model": str(tmp_path / "hopeless"), "ladder.rungs": "[rejection-sampling]", "tasks.splits": FEW}
    climb(load_settings(scripted, over), tmp_path)
    decision = read_run(tmp_path / "ladder").rungs[1].decision
    assert decision is not None and decision.outcome == "refuse"
    assert "4 tries on each of 12 tasks hold no success" in decision.reasons[0]


def test_without_a_verifier_rejection_sampling_is_refused(tmp_path: Path) -> None:
    from sharpen.policies.scripted import scripted_model

    scripted_model(tmp_path / "base", skill=0.5)
    data = tmp_path / "tasks.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Calculate {i} + 1.", "reference": str(i + 1)}) + "\n" for i in range(40)))
    settings = tmp_path / "r.yaml"
    source = {"source": "jsonl", "path": str(data), "splits": {"train": 20, "dev": 20}}
    settings.write_text(yaml.safe_dump({"model": str(tmp_path / "base"), "tasks": source, "ladder": {"rungs": ["rejection-sampling"]}}))
    with pytest.raises(Refused, match=r"has no verifier.*SFT on average behaviour"):
        climb(load_settings(settings, {}), tmp_path / "runs")


def test_undecided_gains_buy_more_evaluation(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, {"evaluation.max_n": "16", "ladder.rungs": "[few-shot]", "tasks.splits": FEW}), tmp_path)
    folder = tmp_path / "ladder/rungs/001-few-shot"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert {task["samples"] for task in evaluation["tasks"]} == {16}
    assert (folder / "dev-8").exists() and (folder / "dev-16").exists()
