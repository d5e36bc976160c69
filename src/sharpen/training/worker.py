"""The training process: TRL's SFTTrainer on rows that are already tokens, LoRA through PEFT. Started by ``sft.py``, under ``accelerate launch`` where
the user has a config for it.

Three things differ from TRL's defaults, each for speed (measured by ``benchmarks/training.py``): steps of like-length rows as planned, logits only
where there are labels, and no gradient checkpointing unless asked for. The loss is the same. What it does not do: packing, checkpoints, evaluation.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sharpen.errors import ModelError, Refused
from sharpen.models import ADAPTER, save_pretrained
from sharpen.training.base import Job, Line, Plan, Progress, Training, Work, micro_batches, trained

AnyWork = TypeVar("AnyWork", bound=Work)


class Broken(Exception):
    """The training cannot go on, for a reason that is told to the user as it stands."""


def precision(asked: Literal["auto", "f32", "bf16"]) -> tuple[Literal["f32", "bf16"], str]:
    """The precision to compute in and one line saying why. "auto" is bf16 only where the hardware multiplies it: elsewhere it is 100 times slower."""
    if asked != "auto":
        return asked, f"{asked}: as set"
    if torch.cuda.is_available():
        return ("bf16", "bf16: the GPU computes in it") if torch.cuda.is_bf16_supported() else ("f32", "f32: this GPU has no bf16")
    can = torch.cpu.get_capabilities()
    if can.get("avx512_bf16") or can.get("amx_bf16"):
        return "bf16", "bf16: this CPU computes in it"
    return "f32", "f32: this CPU has no bf16 arithmetic (avx512_bf16 or amx)"


class RowTrainer(SFTTrainer):
    """SFTTrainer over planned steps of rows, each step computed in micro-batches and normalised by all its labels."""

    def __init__(self, plan: Plan, micro_tokens: int, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.plan = plan
        self.lengths = [len(row.input_ids) for row in plan.rows]
        self.micro_tokens = micro_tokens
        self.labelled: torch.Tensor | None = None
        # TRL's own fused head scores every position on CPUs, and is a third of the work for small models; it also adds entropy and accuracy.
        model: Any = self.model
        model.get_output_embeddings().register_forward_pre_hook(self._only_labelled)

    def _only_labelled(self, head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return inputs if self.labelled is None else (inputs[0][self.labelled], *inputs[1:])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item a step, already dealt to this process, so accelerate must not deal it again."""
        return DataLoader(self.plan.steps, batch_size=None, shuffle=False, collate_fn=self._deal)  # type: ignore[arg-type]

    def _deal(self, step: tuple[int, ...]) -> dict[str, Any]:
        dealt = micro_batches(step, self.lengths, self.micro_tokens, self.args.world_size)[self.args.process_index]
        labels = sum(trained(self.plan.rows[index]) for index in step)
        return {"micro": [self._tensors(chunk) for chunk in dealt], "labels_in_step": labels}

    def _tensors(self, chunk: list[int]) -> dict[str, torch.Tensor]:
        """Padded on the right, where causal attention cannot see it: no attention mask is needed, and attention is faster without."""
        rows = [self.plan.rows[index] for index in chunk]
        width = max((len(row.input_ids) for row in rows), default=2)
        ids = torch.zeros(max(len(rows), 1), width, dtype=torch.long)  # an empty share still runs, for processes that must keep in step
        targets = torch.full_like(ids, -100)
        for at, row in enumerate(rows):
            ids[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
            targets[at, : len(row.labels) - 1] = torch.tensor(row.labels[1:])
        return {"input_ids": ids, "targets": targets}

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The step's mean loss over its labels, computed and differentiated one micro-batch after another."""
        total = torch.zeros((), device=self.args.device)
        for left, micro in zip(range(len(inputs["micro"]) - 1, -1, -1), inputs["micro"], strict=True):
            self.accelerator.gradient_state._set_sync_gradients(left == 0)  # as Trainer does; DeepSpeed steps on it
            with contextlib.nullcontext() if left == 0 else self.accelerator.no_sync(model):
                total += super().training_step(model, micro, inputs["labels_in_step"])  # type: ignore[no-untyped-call]
        return total

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Cross-entropy summed over the labels, divided by the labels of the whole step; times the processes, since their mean is taken."""
        self.labelled = inputs["targets"] != -100
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        loss = F.cross_entropy(logits.float(), inputs["targets"][self.labelled], reduction="sum")
        return torch.mul(loss, self.args.world_size / num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # Trainer's estimate needs a flat batch; nothing here reads it


class Teller(TrainerCallback):
    """Tells the parent how far it is, and stops at the first loss that is not a number."""

    def __init__(self, steps: int, tokens: Callable[[int], int], path: Path) -> None:
        """``tokens`` says how many tokens the first so many of the ``steps`` have read."""
        self.steps, self.tokens, self.path = steps, tokens, path
        self.started = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 0:
            self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        step, loss = state.global_step, float(logs["loss"])
        if not math.isfinite(loss):
            # The first loss is that of the weights as they came: a lower rate would not change it.
            what = (
                f"lower learning_rate (now {args.learning_rate:g})"
                if step > 1
                else "nothing was learnt yet: the weights give it; try precision: f32"
            )
            raise Broken(f"the loss is {loss} at step {step} of {self.steps}; {what}")
        if state.is_world_process_zero:
            speed = self.tokens(step) / max(time.monotonic() - self.started, 1e-9)
            tell(self.path, Line(progress=Progress(step=step, steps=self.steps, loss=loss, tokens_per_second=speed)))


def tell(path: Path, line: Line) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def train(job: Job, progress: Path) -> None:
    """Train and write the merged weights to ``job.out``, which must not exist."""
    chosen, why = precision(job.settings.precision)
    trainer, adapter = make_trainer(job, chosen, progress)
    train_and_save(job, trainer, adapter, why, progress)


def train_and_save(job: Work, trainer: Any, adapter: LoraConfig | None, why: str, progress: Path) -> None:
    """Tell in what precision (``why``), train to the end, and write the merged weights to ``job.out``."""
    if trainer.is_world_process_zero():
        tell(progress, Line(precision=why))
    trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # every process takes part where weights are sharded
    if trainer.is_world_process_zero():
        save(job, trainer.model, weights, adapter, AutoTokenizer.from_pretrained(job.model))  # TRL changes the one it is given


def make_trainer(job: Job, chosen: Literal["f32", "bf16"], progress: Path) -> tuple[RowTrainer, LoraConfig | None]:
    """The trainer, ready to train, and the adapter's settings where there is one."""
    sizes = [sum(len(job.plan.rows[index].input_ids) for index in step) for step in job.plan.steps]
    config = SFTConfig(
        **arguments(job.settings, len(sizes), chosen, progress),
        per_device_train_batch_size=1,  # one planned step an item, see get_train_dataloader
        learning_rate=job.settings.rate,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    model, adapter = student(job, chosen)
    first = job.plan.rows[0]
    trainer = RowTrainer(
        job.plan,
        micro_tokens(job.settings),
        model=model,
        args=config,
        # TRL asks for one; the plan replaces it.
        train_dataset=Dataset.from_dict({"input_ids": [first.input_ids], "labels": [first.labels]}),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=adapter,
        callbacks=[Teller(len(sizes), lambda step: sum(sizes[:step]), progress)],
    )
    return trainer, adapter


def arguments(settings: Training, steps: int, chosen: Literal["f32", "bf16"], progress: Path) -> dict[str, Any]:
    """What every training here tells transformers' Trainer."""
    # Else an accelerate config would overrule what is reported.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if chosen == "bf16" else "no"
    return {
        "output_dir": str(progress.parent / "trl"),
        "max_steps": steps,
        "warmup_steps": round(settings.warmup * steps),
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
        "weight_decay": settings.weight_decay,
        "bf16": chosen == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "report_to": list(settings.report_to) or "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # on, it would hide the very losses that must stop the run
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def student(job: Work, chosen: Literal["f32", "bf16"]) -> tuple[Any, LoraConfig | None]:
    """The model that is trained, and the settings of its adapter where it gets one."""
    settings, lora = job.settings, job.settings.method == "lora"
    # Full training keeps f32 weights and computes in bf16 by autocast: bf16 weights are too coarse for small updates. A LoRA's base is only read.
    dtype = torch.bfloat16 if lora and chosen == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    if not lora:
        return model, None
    return model, LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(settings.lora_targets) if settings.lora_targets is not None else "all-linear",
        task_type="CAUSAL_LM",
    )


def micro_tokens(settings: Training) -> int:
    """The most tokens, padding included, of a micro-batch."""
    return settings.micro_tokens or (8192 if torch.cuda.is_available() else 1024)


def rows_at_once(batch_size: int, processes: int, fit: int, of: str) -> int:
    """How many rows a process computes at once: the most that divide its share of a step and ``fit``, one at least. Refused where there is no even share
    of the ``batch_size`` of the settings ``of``."""
    share, rest = divmod(batch_size, processes)
    if rest:
        raise Refused(f"{of}.batch_size is {batch_size}, which {processes} processes cannot share evenly; set a multiple of {processes}")
    return max(rows for rows in range(1, share + 1) if share % rows == 0 and (rows == 1 or rows <= fit))


def save(job: Work, model: Any, weights: dict[str, torch.Tensor], adapter: LoraConfig | None, tokenizer: Any) -> None:
    """The whole model with what was learnt in it, the adapter beside. Built on a fresh f32 base: the one trained on may be bf16, sharded or wrapped."""
    whole: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    if adapter is None:
        whole.load_state_dict(weights)
    else:
        learnt = get_peft_model_state_dict(model, state_dict=weights)
        whole = get_peft_model(whole, adapter)
        set_peft_model_state_dict(whole, learnt)
        whole.peft_config["default"].base_model_name_or_path = job.start  # its folder means nothing elsewhere
        whole.save_pretrained(Path(job.out) / ADAPTER)
        whole = whole.merge_and_unload()
    save_pretrained(whole, tokenizer, job.out, job.lineage, job.name)


def watch() -> None:
    """End this process when the parent is gone, even if it was killed: stdin is a pipe that only the parent holds open."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def serve(kind: type[AnyWork], train: Callable[[AnyWork, Path], None]) -> None:
    """``MODULE JOB``: do the job in that file, and tell in its folder how far it is or how it ended."""
    path = Path(sys.argv[1])
    progress = path.with_name("progress.jsonl")
    try:
        job = msgspec.json.decode(path.read_bytes(), type=kind)
        if job.watched:
            watch()
        train(job, progress)
    except BaseException as error:
        text = str(error).strip() or type(error).__name__
        reason = text if isinstance(error, (Broken, ModelError, Refused)) else f"{type(error).__name__}: {text.splitlines()[0]}"
        disk = "No space left" in text or "Disk quota" in text
        traceback.print_exc()  # first: once told, the parent ends this process
        if PartialState().is_main_process:
            with contextlib.suppress(OSError):  # on a full disk not even this line may fit; the log has the traceback
                tell(progress, Line(failed=reason, disk=disk, refused=isinstance(error, Refused)))
        sys.exit(1)


if __name__ == "__main__":
    serve(Job, train)
