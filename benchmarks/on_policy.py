"""Steps an hour of on-policy distillation here, beside TRL's DistillationTrainer called bare on the same prompts, side by side.

    python benchmarks/on_policy.py --method lora --steps 2 --repeats 3
    python benchmarks/on_policy.py --smoke                                a model of two small layers: does it run?

Prints one JSON object: commit, hardware, seed, steps an hour of every repeat, and the ratios of ours to the bare trainer in the same repeat. Bare is the
trainer as it comes: of its settings only what is learnt is given (prompts, batch, length, rate, adapter, precision). Both begin from the same weights with the
same seed and see the same prompts in the same order; learning rates are so small that the weights stand still, so both sample answers of like
length, and ``scored_tokens`` says how like. The teacher is the student with noise on its weights: speed does not depend on what it knows.
``launched`` is the whole of ``train_on_policy``: its steps an hour while training, and the seconds around it. Repeats take turns, so that a machine
shared with others slows all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from sharpen.models import Model, load_model, open_folder, save_lineage
from sharpen.records import Lineage, Message
from sharpen.terms import root_of
from sharpen.training import on_policy_worker, worker
from sharpen.training.base import Progress, Training
from sharpen.training.on_policy import Distilling, OnPolicy, Prompt, prepare, train_on_policy


def questions(count: int) -> list[Prompt]:
    """Prompts of about 40 tokens in SmolLM2's template, its system message included."""
    asked = (
        f"A shop sells {n + 2} apples a day and {n % 7 + 3} pears. How many pieces of fruit does it sell in a week?" for n in range(count)
    )
    return [Prompt(key=str(at), messages=(Message(role="user", content=text),)) for at, text in enumerate(asked)]


def small(model: Model, folder: Path) -> Model:
    """Two small layers with random weights, under the same tokenizer."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.path, **shape)).save_pretrained(folder)
    for file in Path(model.path).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return open_folder(folder)


def noisy(model: Model, folder: Path) -> Model:
    """The model with a hundredth of their spread on all weights."""
    weights = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    for parameter in weights.parameters():
        parameter.data += torch.randn_like(parameter) * parameter.std() / 100
    weights.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.path).save_pretrained(folder)
    save_lineage(folder, Lineage(base=model.lineage.base, root=root_of(model), parent=model.fingerprint), folder.name)
    return open_folder(folder)


def ours(job: Distilling, precision: Any) -> tuple[float, int]:
    """Seconds of the worker's trainer in this process, and the tokens that it scored."""
    trainer, _ = on_policy_worker.make_trainer(job, precision, Path(job.out).with_name("progress.jsonl"))
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started, trainer.scored


def bare(job: Distilling, precision: str) -> tuple[float, int]:
    """The same of TRL's trainer as it comes."""
    settings, training = job.on_policy, job.settings
    config = DistillationConfig(
        output_dir=job.out + "-trl", max_steps=settings.steps, per_device_train_batch_size=settings.batch_size, learning_rate=job.rate,
        max_completion_length=settings.max_new_tokens, bf16=precision == "bf16", use_cpu=not torch.cuda.is_available(), shuffle_dataset=False,
        seed=training.seed, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=training.lora_rank, lora_alpha=training.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [one.text for one in job.asked]}),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=adapter if training.method == "lora" else None,
    )
    scored = 0
    loss = trainer.compute_loss

    def counted(model: Any, inputs: dict[str, torch.Tensor], *rest: Any, **named: Any) -> torch.Tensor:
        nonlocal scored
        scored += int(inputs["completion_mask"].sum())
        return loss(model, inputs, *rest, **named)

    trainer.compute_loss = counted
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started, scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--precision", choices=["auto", "f32", "bf16"], default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args()
    if chosen.smoke:
        chosen.batch_size, chosen.max_new_tokens, chosen.steps, chosen.repeats = 4, 8, 1, 1
    training = Training(method=chosen.method, precision=chosen.precision, seed=chosen.seed)
    settings = OnPolicy(steps=chosen.steps, batch_size=chosen.batch_size, max_new_tokens=chosen.max_new_tokens, learning_rate=1e-12)
    precision, why = worker.precision(training.precision)
    runs: dict[str, list[tuple[float, int]]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # the trainers print their logs
        here = Path(folder)
        torch.manual_seed(chosen.seed)
        student = load_model(chosen.model)
        if chosen.smoke:
            student = small(student, here / "student")
        teacher = noisy(student, here / "teacher")
        prompts = questions(chosen.steps * chosen.batch_size)
        job = prepare(student, teacher, prompts, settings, here / "model", training)
        if not chosen.smoke:
            bare(job, precision)  # the first pass through a fresh allocator is slower for whoever makes it
        for repeat in range(chosen.repeats):
            arms = [("bare", bare), ("ours", ours)]
            for name, run in arms if repeat % 2 == 0 else reversed(arms):
                runs[name].append(run(job, precision))
        heard: list[Progress] = []
        _, report = train_on_policy(
            student, teacher, prompts, settings, here / "launched" / "model", training=training,
            on_progress=heard.append,
        )  # fmt: skip
    training_s = report.tokens / heard[-1].tokens_per_second
    hourly = {name: [3600 * chosen.steps / seconds for seconds, _ in each] for name, each in runs.items()}
    ratios = [mine / theirs for mine, theirs in zip(hourly["ours"], hourly["bare"], strict=True)]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    result = {
        "commit": commit,
        "hardware": {"device": device, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), "precision": why},
        "seed": chosen.seed,
        "model": "two small random layers" if chosen.smoke else chosen.model,
        "method": chosen.method,
        "steps": chosen.steps,
        "batch_size": chosen.batch_size,
        "max_new_tokens": chosen.max_new_tokens,
        "steps_per_hour": {name: [round(each, 1) for each in values] for name, values in hourly.items()},
        "scored_tokens": {name: [count for _, count in each] for name, each in runs.items()},
        "ratio_to_bare": {"median": round(median(ratios), 3), "each": [round(ratio, 3) for ratio in ratios]},
        "launched": {
            "steps_per_hour": round(3600 * chosen.steps / training_s, 1),
            "start_and_save_seconds": round(report.seconds - training_s, 1),
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
