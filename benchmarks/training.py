"""Tokens a second of our trainer against a bare PyTorch loop on the same rows, side by side, and of TRL's defaults.

    python benchmarks/training.py --method lora --rows 16 --repeats 3

Prints one JSON object: commit, hardware, seed, tokens/s of every repeat, and the ratios to the bare loop of the same repeat. The bare loop
is what one would write by hand for speed: the same steps of like-length rows, the same micro-batches, precision, adapters and optimiser, and
logits only where there are labels. ``launched`` is the whole of ``sft.train``: its tokens/s while training, and the seconds around it.
Repeats take turns, so that a machine shared with others slows all alike. Made for small models: everything is in one process's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sharpen.models import Model, load_model
from sharpen.records import Lineage, Row, SampleKey
from sharpen.terms import EXPERT
from sharpen.training import sft, worker
from sharpen.training.base import Job, Plan, Progress, Training, micro_batches, plan_rows


def episodes(count: int, seed: int) -> list[Row]:
    """Rows shaped like text-game episodes: 120 to 480 tokens, turns of 60, of which the last 8 are learnt."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        ids = tuple(draw.randrange(100, 40_000) for _ in range(draw.randint(120, 480)))
        labels = tuple(token if at > 60 and at % 60 < 8 else -100 for at, token in enumerate(ids))
        key = SampleKey(model="", task=str(number), environment="", sampling="", index=0)
        rows.append(Row(input_ids=ids, labels=labels, key=key, source="sampled", origin="sampled", maker=EXPERT))
    return rows


def batches(plan: Plan, micro_tokens: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """For each step its micro-batches: ids, and the targets of each position."""
    lengths = [len(row.input_ids) for row in plan.rows]
    for step in plan.steps:
        yield [pad([plan.rows[index] for index in chunk]) for chunk in micro_batches(step, lengths, micro_tokens)[0]]


def pad(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(rows), max(len(row.input_ids) for row in rows), dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        ids[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
        targets[at, : len(row.labels) - 1] = torch.tensor(row.labels[1:])
    return ids, targets


def bare(job: Job, precision: str) -> float:
    """Seconds of a loop written by hand."""
    settings, device = job.settings, "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if precision == "bf16" and settings.method == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).to(device)
    if settings.method == "lora":
        adapter = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0, fused=True)
    labelled: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][labelled[-1]],))
    micro_tokens = 8192 if device == "cuda" else 1024
    started = time.perf_counter()
    for step in batches(job.plan, micro_tokens):
        count = sum(int((targets != -100).sum()) for _, targets in step)
        for ids, targets in ((ids.to(device), targets.to(device)) for ids, targets in step):
            labelled[:] = [targets != -100]
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(input_ids=ids, use_cache=False).logits
            (F.cross_entropy(logits.float(), targets[labelled[-1]], reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    float(weights[0].sum())  # waits for the device
    return time.perf_counter() - started


def ours(job: Job, precision: Any) -> float:
    """Seconds of the worker's trainer, in this process."""
    trainer, _ = worker.make_trainer(job, precision, Path(job.out) / "progress.jsonl")
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def defaults(job: Job, precision: str) -> float:
    """Seconds of TRL's SFTTrainer as it comes: only the precision is set, because f32 machines cannot do its default."""
    out, settings = job.out, job.settings
    config = SFTConfig(
        output_dir=out, per_device_train_batch_size=settings.batch_size, num_train_epochs=1, bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in job.plan.rows]
    adapter = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=adapter if settings.method == "lora" else None,
    )
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def launched(job: Job, model: Model) -> dict[str, float]:
    """The whole of ``sft.train`` in its own process."""
    last: list[Progress] = []
    _, report = sft.train(job.plan.rows, model, job.settings, Path(job.out) / "model", on_progress=lambda at: last.append(at))
    training = report.tokens / last[-1].tokens_per_second
    return {"tokens_per_second": round(last[-1].tokens_per_second, 1), "start_and_save_seconds": round(report.seconds - training, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    model = load_model(chosen.model)
    settings = Training(method=chosen.method, epochs=1, seed=chosen.seed)
    precision, why = worker.precision(settings.precision)
    plan = plan_rows(episodes(chosen.rows, chosen.seed), 1, chosen.seed, batch_size=settings.batch_size)
    speeds: dict[str, list[float]] = {"bare": [], "ours": [], "trl_defaults": []}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model.path,
            start=model.name,
            out=folder,
            name="benchmark",
            lineage=Lineage(base="benchmark"),
            settings=settings,
            plan=plan,
        )
        bare(job, precision)  # the first pass through a fresh allocator is slower for whoever makes it
        for _ in range(chosen.repeats):
            for name, run in (("bare", bare), ("ours", ours), ("trl_defaults", defaults)):
                speeds[name].append(round(plan.tokens / run(job, precision), 1))
        whole = launched(job, model)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    result = {
        "commit": commit,
        "hardware": {"device": device, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "precision": why},
        "seed": chosen.seed,
        "method": chosen.method,
        "rows": chosen.rows,
        "tokens": plan.tokens,
        "trained_tokens": plan.trained_tokens,
        "tokens_per_second": speeds,
        "ratio_to_bare": {
            name: {"median": round(median(ratios), 3), "each": [round(ratio, 3) for ratio in ratios]}
            for name, values in speeds.items()
            if name != "bare" and (ratios := [value / base for value, base in zip(values, speeds["bare"], strict=True)])
        },
        "launched": whole,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
