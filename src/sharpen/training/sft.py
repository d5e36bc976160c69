"""Supervised fine-tuning in a process of its own: rows and a model to a plain model folder, or nothing and one line saying why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sharpen.models import open_folder
from sharpen.records import Model, Row, TrainingReport
from sharpen.training.base import Job, Progress, Training, descend, plan_rows
from sharpen.training.process import name_of, reported, work_in_process


def train(
    rows: Sequence[Row],
    model: Model,
    settings: Training,
    out: Path,
    *,
    token_budget: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, TrainingReport]:
    """Train ``model`` on ``rows`` into the folder ``out``: merged weights, tokenizer and template, lineage.

    ``token_budget`` trains on that many labels instead of ``epochs`` (see ``plan_rows``). The log is ``train.log`` beside ``out``.
    TrainingError where the process died or the loss is not a number, StorageError where the disk is full; ``out`` is then as it was before.
    A failing or interrupted ``on_progress`` ends the training.
    """
    started = time.monotonic()
    plan = plan_rows(rows, settings.epochs, settings.seed, token_budget, batch_size=settings.batch_size)
    lineage = descend(model, rows, plan, settings)
    job = Job(model=model.path, start=model.name, out=str(out), name=name_of(out), lineage=lineage, settings=settings, plan=plan)
    lines = work_in_process("sharpen.training.worker", job, on_progress)
    report = reported(lines, started, steps=len(plan.steps), tokens=plan.tokens, trained_tokens=plan.trained_tokens)
    return open_folder(out), report
