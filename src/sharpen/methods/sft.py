"""SFT on demonstrations: imitation, whose ceiling is the quality of the demonstrations."""

from __future__ import annotations

from msgspec.structs import replace

from sharpen.chat.load import load_template
from sharpen.methods.base import Attempt, Bench, Prompted
from sharpen.records import Selection, Trajectory
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, build_rows, select
from sharpen.tasks.base import TaskSet

# Demonstrations are few and made on purpose: every passing one trains, duplicates of one task excepted.
EVERY_PASS = SelectionSettings(weighting="mean_pass_rate")


def sft(bench: Bench, rung: str, standing: Prompted) -> Attempt:
    """Train the base on every demonstration that passes. Those that fail are counted and left out."""
    pool = bench.demonstrations()
    chosen, good = demonstrations(bench, pool)
    rows, selection = build_rows(chosen, good, load_template(bench.base), bench.training.max_length)
    model, report = bench.train(rung, bench.base, rows, selection)
    return Attempt(Prompted(model), selection, report, pool, trains=good)


def demonstrations(bench: Bench, pool: Pool) -> tuple[Selection, tuple[tuple[str, Trajectory], ...]]:
    """The passing demonstrations that keep to the rules on behaviour, marked as such: what SFT trains on and what later rungs mix back in."""
    chosen = select(pool, replace(EVERY_PASS, behaviour=bench.selection.behaviour), bench.seed)
    return chosen, tuple(("demonstration", pool.trajectories[key]) for key in chosen.kept)


# ---------------------------------------------------------------- what was copied


def demonstrated(tasks: TaskSet) -> int:
    """How many demo tasks are demonstrated, as far as is known before an expert is asked."""
    recorded = tasks.recorded
    return sum(recorded is None or bool(recorded.of(task)) for task in tasks.split("demo").tasks)


def play_demonstrated(bench: Bench, rung: str, agent: Prompted, n: int) -> Pool | None:
    """``n`` judged tries of ``agent`` at each demonstrated task, made as the evaluation makes them: the stage ``rung/demo``. None where there are none."""
    made = bench.demonstrations()
    tasks = [task for key, task in made.tasks.items() if any(made.trajectories[one].stop != "error" for one in made.tries(key))]
    return bench.sample(f"{rung}/demo", agent, tasks, bench.evaluation, range(n)) if tasks and n else None
