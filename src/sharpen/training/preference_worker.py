"""The process of learning to prefer: TRL's DPOTrainer on pairs of rows that are already tokens. Started by ``preference.py``.

Thin: losses and the reference (the model at the start: a copy, or the adapter switched off) are TRL's. Its own data path knows a prompt and one
answer; rows are conversations, of which only labelled tokens count. What it does not do: more than a pair at once in a process, checkpoints.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from sharpen.training.preference import Preferring
from sharpen.training.worker import Teller, arguments, precision, rows_at_once, serve, student, train_and_save


class PairTrainer(DPOTrainer):
    """DPOTrainer on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *given: Any, **named: Any) -> Dataset:
        return dataset


def tensors(pairs: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """What DPOTrainer reads of ``pairs``: all chosen rows, then all rejected ones, padded on the right. Its sums are over the tokens that have a label."""
    ids, labels = ([torch.tensor(one[f"{side}_{what}"]) for side in ("chosen", "rejected") for one in pairs] for what in ("ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "completion_mask": pad_sequence([(row != -100).long() for row in labels], batch_first=True),
    }


def train(job: Preferring, progress: Path) -> None:
    """Train and write the merged weights to ``job.out``, which must not exist."""
    chosen, why = precision(job.settings.precision)
    trainer, adapter = make_trainer(job, chosen, progress)
    train_and_save(job, trainer, adapter, why, progress)


def make_trainer(job: Preferring, chosen: Literal["f32", "bf16"], progress: Path) -> tuple[PairTrainer, LoraConfig | None]:
    """The trainer, ready to train, and the adapter's settings where there is one."""
    plan, settings, processes = job.plan, job.preference, int(os.environ.get("WORLD_SIZE", "1"))  # as launchers set it
    each = rows_at_once(settings.batch_size, processes, 1, "preference")
    config = DPOConfig(
        **arguments(job.settings, plan.steps, chosen, progress),
        per_device_train_batch_size=each,
        gradient_accumulation_steps=settings.batch_size // processes // each,
        learning_rate=job.rate,
        beta=settings.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, settings.nll],
        max_length=None,
        remove_unused_columns=False,
    )
    sides = {"chosen": [one.chosen for one in plan.pairs], "rejected": [one.rejected for one in plan.pairs]}
    ids = {f"{side}_ids": [row.input_ids for row in rows] for side, rows in sides.items()}
    labels = {f"{side}_labels": [row.labels for row in rows] for side, rows in sides.items()}
    model, adapter = student(job, chosen)
    trainer = PairTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({**ids, **labels}),
        data_collator=tensors,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=adapter,
        callbacks=[Teller(plan.steps, lambda step: plan.tokens * step // plan.steps, progress)],
    )
    return trainer, adapter


if __name__ == "__main__":
    serve(Preferring, train)
