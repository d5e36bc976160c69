"""SFT on demonstrations: imitation, whose ceiling is the quality of the demonstrations."""

from __future__ import annotations

from msgspec.structs import replace

from sharpen.chat.load import load_template
from sharpen.methods.base import Attempt, Bench, Prompted
from sharpen.records import Selection, Trajectory
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, build_rows, select

# Demonstrations are few and made on purpose: every passing one trains, duplicates of one task excepted.
EVERY_PASS = SelectionSettings(weighting="mean_pass_rate")


def sft(bench: Bench, rung: str, standing: Prompted) -> Attempt:
    """Train the base on every demonstration that passes. Those that fail are counted and left out."""
    pool = bench.demonstrations()
    chosen, good = demonstrations(bench, pool)
    rows, selection = build_rows(chosen, good, load_template(bench.base), bench.training.max_length)
    model, report = bench.train(rung, bench.base, rows, selection)
    return Attempt(Prompted(model), selection, report, pool)


def demonstrations(bench: Bench, pool: Pool) -> tuple[Selection, tuple[tuple[str, Trajectory], ...]]:
    """The passing demonstrations that keep to the rules on behaviour, marked as such: what SFT trains on and what later rungs mix back in."""
    chosen = select(pool, replace(EVERY_PASS, behaviour=bench.selection.behaviour), bench.seed)
    return chosen, tuple(("demonstration", pool.trajectories[key]) for key in chosen.kept)
