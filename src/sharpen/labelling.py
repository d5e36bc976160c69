"""``sharpen label``: one trajectory at a time, in the terminal or over a pipe. The verdict stays hidden until the labeller has answered."""

from __future__ import annotations

import datetime
import getpass
import io
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console

from sharpen.advisor import purity_line
from sharpen.audit import Tries, tries_in
from sharpen.errors import RunError, SettingsError, SharpenError
from sharpen.labels import Labels, Shown, content, copy_of, draw, measure, read_labels, shuffled, write_label
from sharpen.policies.meter import SPENT, Meter, Spending
from sharpen.records import Label, Purity, SampleKey, Task
from sharpen.report.terminal import agreement_line, question_text, said_text
from sharpen.settings import RunSettings, load_settings
from sharpen.store.run import SETTINGS, existing
from sharpen.tasks.data_file import OwnData, verifier_of
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.base import Verifier, charge
from sharpen.verifiers.remembered import OPINIONS, remembered
from sharpen.verifiers.run import judge_many

Among = Literal["kept", "passed", "failed", "all"]
By = Literal["random", "disagreement"]
KEYS: dict[str, Literal["good", "bad", "unsure"]] = {"g": "good", "b": "bad", "u": "unsure"}
PROMPT = "[g]ood  [b]ad  [u]nsure  [s]kip  [z] undo  [q]uit > "


def label(
    folder: Path,
    *,
    settings: Path | None = None,
    labels: Path | None = None,
    labeller: str | None = None,
    rung: str | None = None,
    among: Among = "kept",
    by: By = "random",
    second: str | None = None,
    limit: int | None = None,
) -> int:
    """Ask for labels of tries in a work folder or a run, and append each to the labels file. Returns how many were given.

    Without ``limit`` it asks until the purity of what is shown is settled. What this labeller has labelled is not shown again. ``settings`` are only
    needed for a work folder, to show the reference; a run has its own. RunError where there is nothing to label.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no text is no answer either
    labeller = labeller or getpass.getuser()
    given = _settings(existing(folder), settings)
    place = labels or (given.labels_place if given is not None else Path(f"labels/{folder.resolve().name}.jsonl"))
    tries = tries_in(folder, rung)
    rows = _rows(folder, tries, among)
    tasks, verifier, problem = _tasks(given)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if problem:
        console.print(f"the reference is not shown: {problem}", markup=False)
    bar = given.ladder.purity if given is not None else 0.9
    asking = _Asking(console, tries, rows, tasks, place, labeller, bar)
    wanted = limit or asking.purity().missing
    suspects = (
        _suspects(tries, rows, tasks, folder, second, given.spending if given is not None else None) if by == "disagreement" else None
    )
    count = asking.ask(draw(shuffled(rows), max(wanted, 1), suspects), limit)
    asking.end(verifier)
    return count


@dataclass
class _Asking:
    """One labeller's sitting."""

    console: Console
    tries: Tries
    rows: Mapping[SampleKey, str]
    tasks: Mapping[str, Task]
    place: Path
    labeller: str
    bar: float
    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    done: list[Label] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """Where this labeller's labels go: the file itself, or one of theirs in the folder."""
        return self.place / (re.sub(r"[^\w.-]", "_", self.labeller) + ".jsonl") if self.place.is_dir() else self.place

    def read(self) -> Labels:
        return read_labels(self.place)

    def purity(self) -> Purity:
        return measure(self.rows, self.read(), self.bar)

    def ask(self, shown: list[Shown], limit: int | None) -> int:
        """Show one after the other until the labeller quits, ``limit`` are labelled or, without one, the purity is settled."""
        mine = {line.digest for said in self.read().standing().values() for line in said.values() if line.labeller == self.labeller}
        open_ = [one for one in shown if self.rows[one.key] not in mine]
        at = 0
        while at < len(open_):
            one = open_[at]
            if any(line.digest == self.rows[one.key] for line in self.done):  # the same text under two keys is asked for once
                at += 1
                continue
            purity = self.purity()
            if len(self.done) == limit or (limit is None and purity.outcome != "open"):
                break
            left = limit - len(self.done) if limit is not None else purity.missing
            self.console.print(question_text(self.tries.trajectories[one.key], self.tasks.get(one.key.task), left), soft_wrap=True)
            started = time.monotonic()
            answer = self._answer()
            if answer == "q":
                break
            if answer == "z":
                at = self._undo(open_, at)
                continue
            if answer in KEYS:
                self._write(one, KEYS[answer], time.monotonic() - started)
                self.console.print(said_text(self.tries.verdicts.get(one.key)), soft_wrap=True)
            at += 1
        return len(self.done)

    def _answer(self) -> str:
        while True:
            key = read_key(self.stdin, lambda: self.console.print(PROMPT, end="", markup=False))
            if not self.stdin.isatty() or key in (*KEYS, "s", "z", "q"):
                self.console.print(key, markup=False) if key.isprintable() else self.console.print()
            if key in (*KEYS, "s", "z", "q"):
                return key
            self.console.print("press one of g, b, u, s, z, q")

    def _write(self, one: Shown, said: Literal["good", "bad", "unsure", "withdrawn"], seconds: float) -> None:
        trajectory = self.tries.trajectories[one.key]
        line = Label(
            key=one.key, digest=self.rows[one.key], label=said, labeller=self.labeller,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), seconds=round(seconds, 1), why=one.why,
            stratum=one.stratum, of=one.of, inclusion=one.inclusion, population=one.population, trajectory=copy_of(trajectory),
        )  # fmt: skip
        write_label(self.file, line)
        if said != "withdrawn":
            self.done.append(line)

    def _undo(self, open_: list[Shown], at: int) -> int:
        """Take back the last label of this sitting and go back to its trajectory."""
        if not self.done:
            self.console.print("there is nothing to undo in this sitting")
            return at
        last = self.done.pop()
        back = next(place for place, one in enumerate(open_) if one.key == last.key)
        self._write(open_[back], "withdrawn", 0.0)
        return back

    def end(self, verifier: Verifier | None) -> None:
        """What the labels say now."""
        labels = self.read()
        lines = [f"{len(self.done)} labels by {self.labeller}: {self.file}"]
        agreement = labels.agreement()
        lines += [agreement_line(agreement)] if len(agreement.labellers) > 1 else []
        purity = measure(self.rows, labels, self.bar)
        exact = " (the verifier is exact: this is for the record)" if verifier is not None and verifier.exact else ""
        lines += [purity_line(purity) + exact, *(f"note: {note}" for note in purity.notes)]
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)


def read_key(stdin: TextIO, ask: Callable[[], None]) -> str:
    """``ask``, and one answer, in lower case: a key where there is a terminal, else the first letter of a line. ``q`` at the end of the input, "" for none.

    What was typed before the question was shown is no answer to it, and a key that sends several bytes (an arrow ends in ``B``) is none of ours.
    """
    if not stdin.isatty():
        ask()
        line = stdin.readline()
        return line.strip()[:1].lower() if line else "q"
    import termios
    import tty

    handle = stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle, termios.TCSAFLUSH)
        ask()  # not before: what was pressed at once would be flushed away
        pressed = os.read(handle, 64)
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
    if pressed in (b"", b"\x04"):
        return "q"
    return pressed.decode(errors="replace").lower() if len(pressed) == 1 else ""


# ---------------------------------------------------------------- what is asked about


def _settings(folder: Path, settings: Path | None) -> RunSettings | None:
    if settings is not None:
        return load_settings(settings, {})
    return load_settings(folder / SETTINGS, {}) if (folder / SETTINGS).exists() else None


def _tasks(settings: RunSettings | None) -> tuple[dict[str, Task], Verifier | None, str]:
    """The settings' tasks by key, their verifier, and why there are none."""
    if settings is None:
        return {}, None, "no settings say what the tasks are; name them with --settings"
    try:
        tasks = load_tasks(settings.tasks)
    except SharpenError as error:
        return {}, None, str(error)
    return {task.key: task for task in tasks.tasks}, tasks.verifier, ""


def _rows(folder: Path, tries: Tries, among: Among) -> dict[SampleKey, str]:
    """Content by key of the tries to be labelled. RunError where there are none."""
    if not tries.trajectories:
        raise RunError(f"{folder} holds no tries to label; name a run, or a work folder that sharpen sample made")
    if among == "kept":
        if tries.kept is None:
            raise RunError(f"nothing has been selected in {folder}; run sharpen select first, or label --among passed, failed or all")
        keys: Collection[SampleKey] = tries.kept
    elif among == "all":
        keys = tries.trajectories.keys()
    else:
        outcome = {"passed": "pass", "failed": "fail"}[among]
        keys = [key for key in tries.trajectories if key in tries.verdicts and tries.verdicts[key].outcome == outcome]
    if not keys:
        raise RunError(f"no try in {folder} is {among}: there is nothing to label")
    return {key: content(tries.trajectories[key]) for key in keys}


def _suspects(
    tries: Tries, rows: Collection[SampleKey], tasks: Mapping[str, Task], folder: Path, second: str | None, caps: Spending | None
) -> set[SampleKey]:
    """Rows where a bad one is likelier: a ``second`` verifier says otherwise or, without one, the score is in the lowest quarter.

    What the second verifier asks is counted under ``label``, in ``folder``, and paid once.
    """
    if second is not None:
        other = verifier_of(OwnData(verifier=second))
        assert other is not None
        if missing := [key for key in rows if key.task not in tasks]:
            raise SettingsError(f"--second needs the tasks, and {missing[0].task!r} is not among them; name them with --settings")
        meter = Meter(caps, folder / SPENT)
        paid = charge(other, meter, "label") is not None
        kept = remembered(other, folder / OPINIONS / "second", content)
        try:
            judged = judge_many(((tasks[key.task], tries.trajectories[key]) for key in rows if key in tries.verdicts), kept)
            return {one.key for one, verdict in judged if verdict.outcome != tries.verdicts[one.key].outcome}
        finally:
            if paid:
                meter.write()
    scores = {key: verdict.score for key in rows if (verdict := tries.verdicts.get(key)) is not None and verdict.score is not None}
    if len(set(scores.values())) < 2:
        raise SettingsError("the verdicts have no scores to go by; name another verifier with --second, or label --by random")
    edge = sorted(scores.values())[len(scores) // 4]
    low = {key for key, score in scores.items() if score <= edge}
    return low if len(low) < len(scores) else {key for key, score in scores.items() if score < max(scores.values())}
