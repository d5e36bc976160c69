"""One run from settings to page: what ``sharpen run`` does."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from sharpen import loop
from sharpen.advisor import too_lossy
from sharpen.errors import RunError, SettingsError, Stopped
from sharpen.handoff.folder import try_to_hand_over
from sharpen.ladder import Ladder, Rung
from sharpen.measurements import open_bench, wanted
from sharpen.models import load_model
from sharpen.models import shipped as ships
from sharpen.records import Model, Spent
from sharpen.report.live import Live
from sharpen.report.page import bought, paid
from sharpen.report.read import read_run, write_page
from sharpen.report.terminal import distillation_table, diversity_table, ladder_table
from sharpen.settings import RunSettings, load_settings, resolved, to_yaml
from sharpen.store.run import ENDED, SETTINGS, Run, existing, fork
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks

Planned = Callable[[TaskSet, Model], Spent]


def climb(settings: RunSettings, runs: Path, fork_to: str | None = None, *, trust: bool = False, planned: Planned | None = None) -> Rung:
    """Climb the ladder in ``runs/NAME``, going on where an earlier call stopped, and print its table. Returns the rung that ships.

    ``trust`` goes on with a verifier that is neither exact nor audited, as ``ladder.trust_unaudited_verifier`` does. ``planned`` tells what the whole run
    is expected to take, before it is begun: the last line holds the bill against it.
    """
    folder = runs / settings.name
    if fork_to is not None:
        settings = replace(settings, name=fork_to)
        fork(folder, runs / fork_to, to_yaml(settings))
        folder = runs / fork_to
    run = Run.open(folder, to_yaml(settings), resolved)
    started = time.monotonic()
    try:
        with Live() as live, loop.interruptible(live.say) as asked:
            live.say(f"sharpen: {folder}, seed {settings.seed}")
            if run.repaired:
                live.say(run.repaired)
            tasks = load_tasks(settings.tasks, settings.demonstrations)
            if not tasks.split("dev").tasks:
                raise SettingsError("the tasks have no dev split: nothing could be decided; give tasks.splits.dev some families")
            model = load_model(settings.model, settings.template)
            if planned is not None and not any(note.get("event") == "planned" for note in run.ledger()):
                # Nobody knows the seconds before a try was made.
                run.note({"event": "planned", "spent": replace(planned(tasks, model), seconds=0.0)})
            with open_bench(settings, run, tasks, model, live, asked) as bench:
                run.note(_circumstances(settings))
                ladder = Ladder(bench, settings.ladder, labels=settings.labels_place, trust=trust, advice=settings.advice)
                shipped = ladder.climb()
                run.note({"event": ENDED, "rungs": [rung.name.removeprefix("rungs/") for rung in ladder.rungs if not rung.control]})
    except Stopped:
        _print(folder)
        raise
    finally:
        run.note({"event": "stopped", "seconds": round(time.monotonic() - started, 1)})
        run.close()
    _print(folder, shipped, "" if ladder.waiting else try_to_hand_over(folder, tasks))
    return shipped


def distilling(source: Path, teacher: str | None, overrides: Mapping[str, str], runs: Path | None = None) -> tuple[RunSettings, Path]:
    """The settings of a run that distils ``teacher`` into what the run in the folder ``source`` ships, or into the model of a settings file; and its place.

    Of a run tasks, sampling, evaluation and labels stay as they were; its name is the old one with the teacher's behind it, unless ``overrides`` say.
    """
    given = {"ladder.rungs": "[distillation]"} | ({"teacher": teacher} if teacher is not None else {}) | dict(overrides)
    if not (source / SETTINGS).exists():
        if source.is_dir() or not (source.exists() or source.suffix in (".yaml", ".yml")):
            existing(source, "run or settings file")
            raise RunError(f"there is no run in {source}: it has no {SETTINGS}; name a folder that sharpen run made, or a settings file")
        settings = load_settings(source, given)
        name = f"{settings.name}-{_slug(teacher)}" if teacher is not None and "name" not in overrides else settings.name
        return replace(settings, name=name), runs or Path("runs")
    before = load_settings(source / SETTINGS, {"ladder.rungs": "[]", "teacher": "null"})
    student = ships(source)
    own = {"name": f"{before.name}-{_slug(teacher or 'distilled')}", "labels": str(before.labels_place)}
    if Path(student.path).is_relative_to(source.resolve()):  # else it ships the model that it started from
        own |= {"model": student.path, "template": '""'}
    return load_settings(source / SETTINGS, own | given), runs or source.parent


def refusal(folder: Path) -> str:
    """Why the run in ``folder`` distilled nothing, where that was refused; "" where a student was made."""
    made = [rung for rung in read_run(folder, samples=0).rungs if rung.method == "distillation" and not rung.control]
    refused = [rung.decision.reasons[0] for rung in made if rung.decision is not None and rung.decision.outcome == "refuse"]
    return refused[-1] if len(refused) == len(made) > 0 else ""


def _slug(teacher: str) -> str:
    return re.sub(r"[^\w.-]+", "-", teacher.rstrip("/").rsplit("/", 1)[-1])


def _print(folder: Path, shipped: Rung | None = None, handed: str = "") -> None:
    """The table of what is there, what it cost, and where the rest lies."""
    page, view = write_page(folder), read_run(folder, samples=0)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(ladder_table(view))
    for rung in view.rungs:
        if rung.distilled is not None:
            console.print(distillation_table(rung.name, rung.distilled))
        if rung.diversity is not None and any(map(too_lossy, rung.diversity.changes)):
            console.print(diversity_table(rung.name, rung.diversity))
    lines = [f"{rung.name}: {said}" for rung in view.rungs if (said := bought(rung))]
    lines += [f"all:   {paid(view.spent, view.judging, view.planned)}"] if view.spent.calls else []
    if shipped is not None:
        assert shipped.agent is not None
        lines.append(f"ships: {shipped.name.removeprefix('rungs/')}  {shipped.agent.model.path}")
    for line in (*lines, *([handed] if handed else []), f"page:  {page}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _circumstances(settings: RunSettings) -> dict[str, object]:
    """What a number needs beside it: hardware, commit, seed, date."""
    return {
        "event": "started",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "commit": _commit(),
        "seed": settings.seed,
        **wanted(settings),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit of the checkout that sharpen runs from, where it runs from one."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
