"""``--plan``: what it counts is what the run then does, and what it makes to measure is not made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conftest import FEW
from sharpen.cli import main
from sharpen.errors import SettingsError
from sharpen.plan import Typical, ahead, plan
from sharpen.policies.meter import Bill
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.stats import families_needed, smallest_effect
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST
from sharpen.tasks.load import load_tasks

ALL = {
    "ladder.alpha": "0.9999",
    "ladder.rounds": "1",
    "tasks.splits": "{demo: 6, train: 20, dev: 20, test: 4}",
}  # so easily satisfied that every rung is kept


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
