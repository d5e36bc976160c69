"""sharpen label: over a pipe and in a terminal, with hostile trajectories, and what it leaves."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from sharpen.cli import main
from sharpen.labels import read_labels
from sharpen.records import Message, SampleKey, Selection, Trajectory, Verdict
from sharpen.store.files import write_json
from sharpen.store.segments import Segments

COUNT = 40
ENOUGH = 18  # labels, all good, clear the bar
HOSTILE = "fine \x1b]0;owned\x07\x1b[2J\x1b[1A [bold]not markup[/bold] \u202egnorw\x9b31m"


def key(number: int) -> SampleKey:
    return SampleKey(model="m", task=f"t{number:02}", environment="e", sampling="s", index=0)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder of 40 tries that all passed; the reason of each verdict names it, and every third has a low score."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work"
    trajectories, verdicts = Segments(folder / "trajectories", Trajectory), Segments(folder / "verdicts", Verdict)
    for n in range(COUNT):
        messages = (Message(role="user", content=f"question {n}"), Message(role="assistant", content=f"answer {n} {HOSTILE}"))
        trajectories.append(Trajectory(key=key(n), agent="m", messages=messages, stop="done", outcome={"secret": "won"}))
        verdicts.append(Verdict(key=key(n), outcome="pass", score=0.6 if n % 3 == 0 else 0.9, reason=f"REASON-{n}", verifier="v"))
    trajectories.seal(trajectories.records)
    verdicts.seal(verdicts.records)
    write_json(folder / "selection.json", Selection(kept=tuple(key(n) for n in range(COUNT)), left_out=(), counts={}))
    return folder


def write_tasks() -> None:
    rows = [{"key": f"t{n:02}", "prompt": f"question {n}", "reference": f"THE-REFERENCE-{n}", "split": "train"} for n in range(COUNT)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def say(lines: str, *flags: str, monkeypatch: pytest.MonkeyPatch, by: str = "ann") -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return main(["label", "work", "--labeller", by, *flags])


def kept(place: str = "labels/work.jsonl") -> list[tuple[str, str]]:
    return [(line.labeller, line.label) for line in read_labels(Path(place)).lines]


def test_labels_over_a_pipe_are_written_one_by_one(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert say("g\nBad\n\nx\nu\ns\nq\n", monkeypatch=monkeypatch) == 0
    assert kept() == [("ann", "good"), ("ann", "bad"), ("ann", "unsure")]
    printed = capsys.readouterr().out
    assert printed.count("press one of g, b, u, s, z, q") == 2  # an empty line and an x are no answers
    assert "3 labels by ann: labels/work.jsonl" in printed and "lower bound" in printed
    line = read_labels(Path("labels/work.jsonl")).lines[0]
    assert (line.why, line.of, line.inclusion, line.seconds >= 0) == ("random", COUNT, ENOUGH / COUNT, True)


def test_what_is_no_text_is_no_answer(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n\x00\ng\n\x1b[B\n"), encoding="utf-8"))
    assert main(["label", "work", "--labeller", "ann"]) == 0
    assert kept() == [("ann", "good")]


def test_the_verdict_is_hidden_until_the_answer(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert say("g\n", monkeypatch=monkeypatch) == 0
    first, after = capsys.readouterr().out.split("uit > ", 1)
    assert "question" in first and not any(word in first for word in ("REASON", "pass", "won", "0.9", "verifier"))
    assert "the verifier said pass: REASON-" in after.split("----")[0]


def test_nothing_in_a_trajectory_reaches_the_terminal(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say("g\nq\n", monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert not any(sign in printed for sign in ("\x1b", "\x07", "\x9b", "\u202e")) and "[bold]not markup[/bold]" in printed


def test_given_again_it_goes_on_and_another_labeller_sees_the_same_ones(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say("g\ng\n", monkeypatch=monkeypatch) == 0  # the input ends: that is quitting
    assert say("g\nq\n", monkeypatch=monkeypatch) == 0
    mine = [line.key for line in read_labels(Path("labels/work.jsonl")).lines]
    assert len(set(mine)) == 3
    capsys.readouterr()
    assert say("g\ng\nb\n", "--limit", "3", monkeypatch=monkeypatch, by="bea") == 0
    lines = read_labels(Path("labels/work.jsonl")).lines
    assert [line.key for line in lines if line.labeller == "bea"] == mine
    printed = capsys.readouterr().out
    assert "labellers ann, bea agree on 66.7% of pairs, Krippendorff's alpha 0.00, n 3 trajectories" in printed
    assert "labellers disagree on 1 trajectories" in printed


def test_undo_takes_back_and_asks_again(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert say("z\ng\ng\nz\nb\nq\n", monkeypatch=monkeypatch) == 0
    assert "there is nothing to undo" in capsys.readouterr().out
    assert kept() == [("ann", "good"), ("ann", "good"), ("ann", "withdrawn"), ("ann", "bad")]
    lines = read_labels(Path("labels/work.jsonl")).lines
    assert lines[1].key == lines[2].key == lines[3].key != lines[0].key


def test_it_stops_asking_when_the_bar_is_settled(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert say("g\n" * 100, monkeypatch=monkeypatch) == 0
    assert len(kept()) == ENOUGH
    assert "over the bar of 90%; no more labels are needed" in capsys.readouterr().out
    assert say("g\n" * 100, monkeypatch=monkeypatch) == 0
    assert len(kept()) == ENOUGH
    assert say("g\n" * 100, "--limit", "100", monkeypatch=monkeypatch) == 0
    assert len(kept()) == COUNT


def test_disagreement_first_by_score_and_by_a_second_verifier(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say("g\n" * 10, "--by", "disagreement", "--limit", "10", monkeypatch=monkeypatch) == 0
    lines = read_labels(Path("labels/work.jsonl")).lines
    assert [line.stratum for line in lines[:4]] == ["disagreed", "agreed", "disagreed", "agreed"]
    assert {line.of for line in lines if line.stratum == "disagreed"} == {14}  # every third of forty
    Path("other.py").write_text("def verify(task, trajectory):\n    return trajectory.key.task not in ('t03', 't05')\n")
    Path("run.yaml").write_text("tasks: {source: jsonl, path: tasks.jsonl}\n")
    write_tasks()
    flags = ["--by", "disagreement", "--second", "other.py:verify", "--settings", "run.yaml", "--labels", "mine.jsonl", "--limit", "2"]
    assert say("b\ng\n", *flags, monkeypatch=monkeypatch) == 0
    first, second = read_labels(Path("mine.jsonl")).lines
    assert first.key.task in ("t03", "t05") and (first.of, second.of) == (2, 38) and first.inclusion == 0.5


def test_the_reference_stands_beside_the_task(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text("tasks: {source: jsonl, path: tasks.jsonl}\n")
    write_tasks()
    assert say("q\n", "--settings", "run.yaml", monkeypatch=monkeypatch) == 0
    assert "THE-REFERENCE-" in capsys.readouterr().out
    Path("tasks.jsonl").unlink()
    assert say("q\n", "--settings", "run.yaml", monkeypatch=monkeypatch) == 0
    assert "the reference is not shown: tasks.jsonl cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--limit", "0"], "--limit is 0"),
        (["--labeller", " "], "--labeller is empty"),
        (["--second", "x.py:f"], "--second is for --by disagreement"),
        (["--among", "failed"], "no try in work is failed"),
        (["--settings", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--rung", "zzz", "nowhere"], ""),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], why: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not why:
        assert main(["label", "nowhere"]) == 2
        why = "no such run or work folder: nowhere"
    else:
        assert say("q\n", *flags, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1
    assert not Path("labels").exists()


def test_in_a_terminal_single_keys_do_and_arrows_and_what_was_typed_ahead_do_not(work: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sharpen", "label", "work", "--labeller", "ann"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=work.parent, start_new_session=True)
    os.close(theirs)
    seen = b""

    def until(words: bytes, times: int) -> None:
        nonlocal seen
        while seen.count(words) < times:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # it has ended
                raise AssertionError(seen[-2000:]) from None

    os.write(ours, b"bbb")  # typed before anything was shown
    until(b"uit > ", 1)
    for number, press in enumerate([b"\x1b[B", b"g", b"z", b"b", b"q"], 2):
        os.write(ours, press)  # an arrow down ends in B; then good, undone, bad, and out
        until(b"uit > " if press != b"q" else b"1 labels by ann", number if press != b"q" else 1)
    assert process.wait() == 0
    os.close(ours)
    assert [line.label for line in read_labels(work.parent / "labels/work.jsonl").lines] == ["good", "withdrawn", "bad"]
    assert b"\x1b]0;owned" not in seen and b"\x1b[2J" not in seen
