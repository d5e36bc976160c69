"""The process of on-policy distillation: TRL's DistillationTrainer, or its GOLDTrainer, over planned prompts. Started by ``on_policy.py``.

Thin: sampling, scoring and losses are TRL's. Different from its defaults are what is said here, and no gradient checkpointing unless asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gold.gold_config import GOLDConfig
from trl.experimental.gold.gold_trainer import GOLDTrainer
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from sharpen.errors import Refused
from sharpen.models import weight_files
from sharpen.training.base import Line
from sharpen.training.on_policy import INSTEAD, Distilling
from sharpen.training.worker import Teller, arguments, micro_tokens, precision, rows_at_once, serve, student, tell, train_and_save


class Counted:
    """How many tokens were read and, of these, scored, in this process."""

    tokens = 0
    scored = 0

    def count(self, read: torch.Tensor, scored: torch.Tensor) -> None:
        self.tokens += int(read.sum())
        self.scored += int(scored.sum())


class OnPolicyOnly(DistillationTrainer, Counted):
    """DistillationTrainer on prompts that are token ids already."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *given: Any, **named: Any) -> torch.Tensor:
        self.count(torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1), inputs["completion_mask"])
        loss: torch.Tensor = super().compute_loss(model, inputs, *given, **named)
        return loss


class Mixed(GOLDTrainer, Counted):
    """GOLDTrainer, for two vocabularies or a share that is the teacher's own; its losses are means over the tokens that it scored."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """Not the count that Trainer takes beforehand: that is of the answers in the data set, not of those that are sampled."""

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *given: Any, **named: Any) -> torch.Tensor:
        self.count(inputs["attention_mask"], inputs["labels"] != -100)
        loss: torch.Tensor = super().compute_loss(model, inputs, *given, **named)  # type: ignore[no-untyped-call]
        return loss


Distiller = OnPolicyOnly | Mixed


def train(job: Distilling, progress: Path) -> None:
    """Distil, and write the merged weights to ``job.out``, which must not exist."""
    chosen, why = precision(job.settings.precision)
    check_memory(job, chosen)
    trainer, adapter = make_trainer(job, chosen, progress)
    train_and_save(job, trainer, adapter, why, progress)
    counts = trainer.accelerator.reduce(torch.tensor([trainer.tokens, trainer.scored], device=trainer.args.device))
    if trainer.is_world_process_zero():
        tell(progress, Line(tokens=int(counts[0]), trained_tokens=int(counts[1])))


def make_trainer(job: Distilling, chosen: Literal["f32", "bf16"], progress: Path) -> tuple[Distiller, LoraConfig | None]:
    """The trainer, ready to train, and the adapter's settings where there is one."""
    settings, processes = job.on_policy, int(os.environ.get("WORLD_SIZE", "1"))  # as launchers set it
    each = rows_at_once(settings.batch_size, processes, micro_tokens(job.settings) // job.longest, "on_policy")
    common = {
        **arguments(job.settings, settings.steps, chosen, progress),
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": settings.batch_size // processes // each,
        "learning_rate": job.rate,
        "temperature": settings.temperature,
        "top_p": 1.0,
        "beta": settings.beta,
        "max_completion_length": settings.max_new_tokens,
        "disable_dropout": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model, adapter = student(job, chosen)
    model.generation_config.eos_token_id = list(job.end_ids)
    teacher: Any = AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.bfloat16 if chosen == "bf16" else torch.float32)
    if job.one_vocabulary:
        teacher.resize_token_embeddings(model.config.get_text_config().vocab_size)  # rows beyond are of no token, see vocabulary_difference
    parts = {"model": model, "teacher_model": teacher, "processing_class": tokenizer, "peft_config": adapter}
    trainer: Distiller
    if job.way == "distillation":
        config = DistillationConfig(**common, shuffle_dataset=False)  # planned
        trainer = OnPolicyOnly(args=config, train_dataset=Dataset.from_dict({"prompt": [one.ids for one in job.asked]}), **parts)
    else:
        gold = GOLDConfig(
            **common,
            lmbda=settings.lmbda,
            max_length=job.longest,
            use_uld_loss=not job.one_vocabulary,
            use_extended_uld=not job.one_vocabulary,
            uld_use_hybrid_loss=True,
            uld_student_temperature=settings.temperature,
            uld_teacher_temperature=settings.temperature,
            uld_token_merge_strategy="bayesian",  # "observed" compares each position with the one behind it
            uld_skip_student_eos=False,  # the end of a turn is to be learnt; only what TRL appends to the teacher's text is skipped
        )
        rows = {"prompt": [one.text for one in job.asked], "completion": [one.answer for one in job.asked]}
        trainer = Mixed(args=gold, train_dataset=Dataset.from_dict(rows), **parts)
    trainer.add_callback(Teller(settings.steps, lambda _: trainer.tokens * processes, progress))
    return trainer, adapter


def check_memory(job: Distilling, chosen: Literal["f32", "bf16"]) -> None:
    """Refused where not even the weights of both models, and what the optimiser keeps of the student's, fit into what is free."""
    wanted = least_memory(parameters(job.model), parameters(job.teacher), job.settings.method, chosen)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if wanted > free and job.settings.accelerate_config is None:  # a config may shard them
        raise Refused(
            f"student and teacher {job.teacher_name} need {wanted / 2**30:.1f} GiB at the least, and {free / 2**30:.1f} GiB are free; "
            f"set training.method: lora, name a smaller teacher, or {INSTEAD}"
        )


def least_memory(own: int, teachers: int, method: Literal["lora", "full"], chosen: Literal["f32", "bf16"]) -> int:
    """Bytes for the weights alone, given their numbers: trained in full, each of the student's comes with a gradient and AdamW's two moments, all f32."""
    read = 2 if chosen == "bf16" else 4
    return own * (16 if method == "full" else read) + teachers * read


def parameters(folder: str) -> int:
    """How many weights a model folder holds."""
    total = 0
    for file in weight_files(Path(folder)):
        with safe_open(file, "pt") as tensors:
            total += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    return total


if __name__ == "__main__":
    serve(Distilling, train)
