"""The gate: what neither exactness nor labels vouch for does not train, and what trains on trust says so everywhere."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from sharpen.advisor import gate
from sharpen.audit import tries_in
from sharpen.cli import main
from sharpen.errors import SharpenError
from sharpen.formats.load import read
from sharpen.labels import Labels, content, copy_of, measure, read_labels, write_label
from sharpen.models import open_folder
from sharpen.policies.scripted import scripted_model
from sharpen.records import Decision, Label, Measurements, Purity, RoundPurity, SampleKey, Selection
from sharpen.report.card import model_card
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.store.files import read_json
from sharpen.verifiers.function import FunctionVerifier

READY = Measurements(verifier="v", gold_passes=True, noop_fails=True)
ROWS = {SampleKey(model="m", task=f"t{n}", environment="e", sampling="s", index=0): f"{n:016x}" for n in range(100)}
NONE = measure(ROWS, Labels())


def purity(good: int, labels: int) -> Purity:
    from sharpen.stats import purity_bound

    share = purity_bound([(good, labels, 1000)])
    outcome = "clears" if share.low >= 0.9 else "below" if good / labels < 0.5 else "open"
    return replace(NONE, good=good, bad=labels - good, share=share, outcome=outcome, missing=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "outcome", "why"),
    [
        ({"verifier_exact": True}, "proceed", "the verifier v is exact"),
        (
            {"purity": NONE},
            "refuse",
            "neither exact nor audited: no row is labelled; 23 more of these 100 rows, all good, would clear the bar of 90%; ASK",
        ),
        ({"purity": NONE, "trusted_unaudited": True}, "proceed", "no row is labelled"),
        ({"purity": purity(20, 20)}, "refuse", "20 of 20 labelled rows are good: purity 100.0%, lower bound 86.1%"),
        ({"purity": purity(29, 29)}, "proceed", "no more labels are needed"),
        (
            {"purity": purity(2, 20)},
            "refuse",
            "surely under the bar of 90%, and more labels would not help; mend it, or lower ladder.purity",
        ),
        ({"purity": purity(2, 20), "trusted_unaudited": True}, "refuse", "keeps too much that is not good"),
        (
            {"purity": purity(29, 29), "cheat": "a list: task 't' got pass"},
            "refuse",
            "the verifier v passes a cheat (a list: task 't' got pass); mend it",
        ),
        ({"purity": purity(29, 29), "cheat": "a list: task 't' got pass", "trusted_unaudited": True}, "proceed", "29 of 29"),
        ({"verifier_exact": True, "cheat": "a list: task 't' got pass"}, "proceed", "the verifier v is exact"),
    ],
)
def test_the_gate_says_in_one_line_what_is_missing_and_what_would_lift_it(seen: dict[str, Any], outcome: str, why: str) -> None:
    decision = gate("rejection-sampling", replace(READY, **seen), "ASK")
    assert decision.outcome == outcome and why in decision.reasons[0] and "\n" not in decision.reasons[0]
    assert bool(decision.banners) == (outcome == "proceed" and bool(seen.get("trusted_unaudited")))
    if seen.get("trusted_unaudited") and "cheat" in seen:
        assert decision.banners == ("the verifier v passes a cheat: a list",)
    if outcome == "refuse" and "purity" in seen and seen["purity"].outcome == "open":
        assert "--trust-unaudited-verifier goes on without" in decision.reasons[0]


@pytest.mark.parametrize("seen", [{"verifier_exact": True}, {"purity": purity(29, 29)}, {"purity": NONE, "trusted_unaudited": True}])
def test_what_a_verifier_declares_is_in_the_gates_line_and_on_what_is_made(seen: dict[str, Any]) -> None:
    decision = gate("rejection-sampling", replace(READY, risks=("the verifier v is gameable: why",), **seen), "ASK")
    assert decision.outcome == "proceed" and decision.reasons[1:] == decision.banners[-1:] == ("the verifier v is gameable: why",)


# ---------------------------------------------------------------- a whole ladder


def make(folder: Path) -> Path:
    """A ladder whose verifier is right but not exact: it needs an audit."""
    scripted_model(folder / "base", skill=0.5)
    (folder / "v.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    rows = [{"prompt": f"Calculate {n} + {m}.", "reference": str(n + m)} for n in range(12) for m in range(12)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(folder / "base"),
        "tasks": {
            "source": "jsonl",
            "path": "tasks.jsonl",
            "verifier": "v.py:verify",
            "splits": {"train": 60, "dev": 40, "test": 4},
            "max_overlap": 1,
        },
        "sampling": {"n": 4, "max_tokens": 32},
        "evaluation": {"n": 4, "k": [1], "max_tokens": 32},
        "ladder": {"rungs": ["rejection-sampling"]},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path)


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was run, and waits for labels. Nobody changes it."""
    folder = make(tmp_path_factory.mktemp("waits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run() == 0
    return folder


@pytest.fixture
def refused(waits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be gone on with."""
    folder = Path(shutil.copytree(waits, tmp_path / "refused"))
    monkeypatch.chdir(folder)
    return folder


def run(*flags: str) -> int:
    return main(["run", "mine.yaml", *flags])


def label_kept(rung: Path, how_many: int, said: str = "good") -> None:
    kept = read_json(rung / "purity.json", RoundPurity).kept
    tries = tries_in(rung.parent.parent).trajectories
    for key in kept[:how_many]:
        one = tries[key]
        label = Label(
            key=key, digest=content(one), label=said, labeller="ann", at="", seconds=1.0, of=len(kept), inclusion=0.3, population="p",  # type: ignore[arg-type]
            trajectory=copy_of(one),
        )  # fmt: skip
        write_label(Path("labels/mine.jsonl"), label)


def test_refused_then_labelled_the_same_command_goes_on(
    refused: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    rung = Path("runs/mine/rungs/001-rejection-sampling")
    decision = read_json(rung / "decision.json", Decision)
    enough = read_json(rung / "purity.json", RoundPurity).purity.missing
    assert 20 < enough < 29  # as many rows as are kept
    assert (
        decision.outcome == "refuse"
        and f"{enough} more of these" in decision.reasons[0]
        and "sharpen label runs/mine" in decision.reasons[0]
    )
    assert not (rung / "model").exists() and not Path("runs/mine/rungs/000-base/evaluation-test.json").exists()
    assert "the test split stays closed" in capsys.readouterr().err
    tries = (rung / "sampling/stage.json").read_bytes()

    label_kept(rung, enough - 1)
    assert run() == 0
    assert "1 more of these" in read_json(rung / "decision.json", Decision).reasons[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("g\n" * 9))
    assert main(["label", "runs/mine", "--labeller", "ann"]) == 0  # the command that the refusal names
    assert "1 labels by ann: labels/mine.jsonl" in capsys.readouterr().out
    assert run() == 0
    decision = read_json(rung / "decision.json", Decision)
    assert decision.outcome == "keep" and decision.banners == ()
    assert (rung / "sampling/stage.json").read_bytes() == tries  # no try was bought again
    measured = read_json(rung / "purity.json", RoundPurity).purity
    assert (measured.outcome, measured.good, measured.missing) == ("clears", enough, 0)
    view = read_run(Path("runs/mine"))
    assert view.banners == () and Path("runs/mine/rungs/000-base/evaluation-test.json").exists()  # opened once, for these two
    assert f"{enough} of {enough} labelled rows are good: purity 100.0%, lower bound 9" in Path("runs/mine/report.html").read_text()


def test_a_rung_further_on_waits_with_the_one_that_waits_for_labels(project: Path) -> None:
    assert run("--ladder.rungs", "[rejection-sampling, expert-iteration]") == 0
    assert sorted(path.name for path in Path("runs/mine/rungs").iterdir()) == ["000-base", "001-rejection-sampling"]


def test_bad_labels_refuse_for_good_and_the_run_ends(refused: Path) -> None:
    rung = Path("runs/mine/rungs/001-rejection-sampling")
    label_kept(rung, 20, "bad")
    assert run("--trust-unaudited-verifier") == 0
    assert "surely under the bar" in read_json(rung / "decision.json", Decision).reasons[0]
    assert Path("runs/mine/rungs/000-base/evaluation-test.json").exists()


def test_a_run_says_what_its_verifier_declares_and_so_does_its_page(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FunctionVerifier, "properties", replace(FunctionVerifier.properties, declared="shared", sandboxed=False))
    assert run("--ladder.rungs", "[]") == 0
    said = (
        "the verifier v.py:verify is gameable: shared",
        "the verifier v.py:verify runs what it judges outside a sandbox (none-i-trust-this-code)",
    )
    assert read_json(Path("runs/mine/rungs/000-base/decision.json"), Decision).banners == said
    printed, page = " ".join(capsys.readouterr().out.split()), Path("runs/mine/report.html").read_text()
    assert all(line in printed and f'<p class="banner">{line}</p>' in page for line in said)


def test_trust_goes_on_and_everything_made_of_it_says_so(refused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trust-unaudited-verifier") == 0  # the same run, and the same tries
    assert "nobody audited" in capsys.readouterr().out  # the table's caption
    rung = Path("runs/mine/rungs/001-rejection-sampling")
    banner = "nobody audited the verifier v.py:verify"
    assert banner in read_json(rung / "decision.json", Decision).banners[0]
    assert banner in read_json(rung / "selection.json", Selection).banners[0]
    model = open_folder(rung / "model")
    assert banner in model.lineage.banners[0]
    assert f"**Warning:** {banner}" in model_card(model, "x") and banner in Path("runs/mine/report.html").read_text()

    before = (rung / "stage.json").read_bytes()
    assert run() == 0  # once trained on trust, a rung stays what it is, and keeps its banner
    assert (rung / "stage.json").read_bytes() == before and banner in read_json(rung / "decision.json", Decision).banners[0]
    assert run("--name", "child", "--model", str(rung / "model"), "--ladder.rungs", "[]") == 0
    assert read_run(Path("runs/child")).banners == model.lineage.banners  # a child inherits


def test_the_setting_does_what_the_flag_does(project: Path) -> None:
    assert run("--ladder.trust_unaudited_verifier", "true") == 0
    assert read_json(Path("runs/mine/rungs/001-rejection-sampling/decision.json"), Decision).outcome == "keep"


def test_an_exact_verifier_needs_no_labels_and_theirs_are_shown(project: Path) -> None:
    assert run("--tasks.exact", "true") == 0
    rung = Path("runs/mine/rungs/001-rejection-sampling")
    assert read_json(rung / "decision.json", Decision).outcome == "keep"
    label_kept(rung, 3)
    assert run("--tasks.exact", "true") == 0
    assert "3 of 3 labelled rows are good" in Path("runs/mine/report.html").read_text()


def test_labels_outlive_their_run_and_speak_for_the_same_texts_in_another(refused: Path) -> None:
    label_kept(Path("runs/mine/rungs/001-rejection-sampling"), 40)
    assert run("--name", "other", "--seed", "9", "--labels", "labels/mine.jsonl") == 0
    purity = read_json(Path("runs/other/rungs/001-rejection-sampling/purity.json"), RoundPurity).purity
    assert 29 <= purity.good < 40 and "are not among these rows and say nothing of them" in purity.notes[0]
    assert len(read_labels(Path("labels/mine.jsonl")).lines) == 40


def test_the_steps_by_hand_carry_the_banner_too_until_labels_take_it_away(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["sample"], ["verify"], ["select"]):
        assert main([*verb, "mine.yaml", "w"]) == 0
    assert "nobody audited the verifier v.py:verify" in capsys.readouterr().out
    assert main(["train", "mine.yaml", "w", "--out", "w/model"]) == 0
    assert open_folder(Path("w/model")).lineage.banners == read_json(Path("w/selection.json"), Selection).banners != ()
    assert "nobody audited" in capsys.readouterr().out
    (banner,) = read_json(Path("w/selection.json"), Selection).banners
    for format, name in (
        ("trl", "rows.jsonl"),
        ("trl", "rows.parquet"),
        ("openai", "o.jsonl"),
        ("sharegpt", "s.jsonl"),
        ("atif", "a.jsonl"),
        ("hub", "h"),
    ):
        assert main(["export", "w", name, "--format", format]) == 0
        assert Path(f"{name}.WARNING.txt").read_text() == f"{banner}\n" and f"{banner} ({name}.WARNING.txt)" in capsys.readouterr().out
        assert len(list(read(Path(name), format))) == len(read_json(Path("w/selection.json"), Selection).kept)  # the format is as it was
    tries = tries_in(Path("w"))
    for key in tries.kept or ():
        one = tries.trajectories[key]
        label = Label(
            key=key, digest=content(one), label="good", labeller="ann", at="", seconds=1.0, of=9, inclusion=0.3, population="p",
            trajectory=copy_of(one),
        )  # fmt: skip
        write_label(Path("labels/mine.jsonl"), label)
    assert main(["select", "mine.yaml", "w"]) == 0
    assert read_json(Path("w/selection.json"), Selection).banners == ()
    assert main(["export", "w", "rows.jsonl", "--format", "trl"]) == 0 and not Path("rows.jsonl.WARNING.txt").exists()
    assert main(["audit", "mine.yaml", "w"]) == 0
    assert "every row labelled" in Path("w/audit.json").read_text() and "no more labels are needed" in capsys.readouterr().out


def test_a_verifier_that_breaks_stops_the_run_in_one_line_and_mended_it_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well = Path("v.py").read_text()
    Path("v.py").write_text(
        "def verify(answer, reference):\n    return {}[reference] if int(reference) % 2 else answer.strip() == reference\n"
    )
    assert run("--tasks.exact", "true") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "verdicts ended in an error (" in last and "the verifier raised KeyError" in last and "sampling.max_errors 0.05" in last
    assert not Path("runs/mine/rungs/000-base/evaluation.json").exists()  # no rate was made of it
    made = sum(len(path.read_bytes().splitlines()) for path in Path("runs/mine/rungs/000-base/dev/trajectories").glob("*.jsonl"))
    assert made > 0
    Path("v.py").write_text(well)
    assert run("--tasks.exact", "true") == 0
    evaluation = json.loads(Path("runs/mine/rungs/000-base/evaluation.json").read_text())
    assert evaluation["errors"] == 0 and sum(task["samples"] for task in evaluation["tasks"]) == 160


def test_labels_of_what_passed_by_itself_do_not_vouch_for_what_was_hinted(project: Path) -> None:
    scripted_model(project / "base", skill=0.3)
    again = (
        "--ladder.ways",
        "[hints]",
        "--ladder.alpha",
        "0.000000000001",
        "--ladder.control",
        "false",
        "--sampling.n",
        "2",
        "--hints.share",
        "1",
    )
    again += ("--tasks.splits", "{train: 60, dev: 8, test: 4}")
    assert run(*again) == 0
    first = Path("runs/mine/rungs/001-rejection-sampling")
    hinted = first.with_name(f"{first.name}-retry-1-hints")
    plain = read_json(first / "purity.json", RoundPurity).kept
    label_kept(first, len(plain))
    assert run(*again) == 0
    assert read_json(first / "decision.json", Decision).outcome == "undecided"
    refused, asked = read_json(hinted / "decision.json", Decision), read_json(hinted / "purity.json", RoundPurity)
    assert refused.outcome == "refuse" and "no row is labelled" in refused.reasons[0] and hinted.name in refused.reasons[0]
    assert len(asked.kept) > 5 and not set(asked.kept) & set(plain)
    label_kept(hinted, len(asked.kept))
    assert run(*again) == 0
    assert read_json(hinted / "decision.json", Decision).outcome == "undecided"


def test_damaged_labels_are_said_before_anything_is_paid_for(scripted: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_bytes(b"\x00\xff\x00\n")
    with pytest.raises(SharpenError, match=r"labels\.jsonl:1"):
        climb(load_settings(scripted, {"labels": str(tmp_path / "labels.jsonl")}), tmp_path / "runs")
    assert not list((tmp_path / "runs/ladder/rungs").glob("*"))
