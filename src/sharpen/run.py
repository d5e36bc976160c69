"""One run from settings to page: what ``sharpen run`` does."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace
from rich.console import Console

from sharpen import loop
from sharpen.errors import SettingsError, Stopped
from sharpen.handoff.folder import try_to_hand_over
from sharpen.ladder import Ladder, Rung
from sharpen.methods.base import Bench
from sharpen.models import load_model
from sharpen.policies.meter import SPENT, Meter
from sharpen.records import Model
from sharpen.report.live import Live
from sharpen.report.page import bought, paid
from sharpen.report.read import read_run, write_page
from sharpen.report.terminal import ladder_table
from sharpen.settings import RunSettings, to_yaml
from sharpen.store.run import Run, fork
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks


def climb(settings: RunSettings, runs: Path, fork_to: str | None = None, *, trust: bool = False) -> Rung:
    """Climb the ladder in ``runs/NAME``, going on where an earlier call stopped, and print its table. Returns the rung that ships.

    ``trust`` goes on with a verifier that is neither exact nor audited, as ``ladder.trust_unaudited_verifier`` does.
    """
    folder = runs / settings.name
    if fork_to is not None:
        settings = replace(settings, name=fork_to)
        fork(folder, runs / fork_to, to_yaml(settings))
        folder = runs / fork_to
    run = Run.open(folder, to_yaml(settings))
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
            with open_bench(settings, run, tasks, model, live, asked) as bench:
                run.note(_circumstances(settings))
                ladder = Ladder(bench, settings.ladder, labels=settings.labels_place, trust=trust)
                shipped = ladder.climb()
    except Stopped:
        _print(folder)
        raise
    finally:
        run.note({"event": "stopped", "seconds": round(time.monotonic() - started, 1)})
        run.close()
    _print(folder, shipped, "" if ladder.waiting else try_to_hand_over(folder, tasks))
    return shipped


def open_bench(settings: RunSettings, run: Run, tasks: TaskSet, model: Model, live: Live, asked: Callable[[], str]) -> Bench:
    """The bench that ``settings`` describe, with ``live`` to hear of its work."""
    return Bench(
        run=run, tasks=tasks, base=model, seed=settings.seed, engine=settings.engine, sampling=settings.sampling,
        selection=settings.selection, training=settings.training, evaluation=settings.evaluation, few_shot=settings.few_shot,
        harness=settings.harness, several=settings.agent, meter=Meter(settings.spending, run.folder / SPENT, asked),
        listen=live, say=live.say,
    )  # fmt: skip


def _print(folder: Path, shipped: Rung | None = None, handed: str = "") -> None:
    """The table of what is there, what it cost, and where the rest lies."""
    page, view = write_page(folder), read_run(folder, samples=0)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(ladder_table(view))
    lines = [f"{rung.name}: {said}" for rung in view.rungs if (said := bought(rung))]
    lines += [f"all:   {paid(view.spent)}"] if view.spent.calls else []
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
        "spending": msgspec.to_builtins(settings.spending),
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
