"""GRPO with TRL from where this run's ladder ended: python rl/train_grpo.py --steps 20

It trains all weights of the model in model.json on the tasks in tasks/mixed.jsonl, with the run's own environment and verifier. The reward curve
is out/curve.svg (and .json, with intervals), every try's reward out/episodes.jsonl, what TRL logged out/log.json, the model out/model. Short on
purpose: copy it under another name, in this folder, and make it yours; sharpen handoff does not overwrite what was changed by hand.
"""

import argparse
import sys
from pathlib import Path

import torch
from trl import GRPOConfig, GRPOTrainer

from sharpen.errors import CapError, SharpenError, Stopped
from sharpen.handoff.grpo import parts
from sharpen.training.worker import precision

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="updates (default: 20)")
    parser.add_argument("--prompts", type=int, default=4, help="tasks an update (default: 4)")
    parser.add_argument("--generations", type=int, default=8, help="tries of each (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=["mixed"], help="mixed, never-solved, solved, unmeasured or all (default: mixed)")
    parser.add_argument("--reward", choices=["pass", "score"], default="pass", help="the verifier's pass, or its score, for part marks")
    parser.add_argument("--form", choices=["reward", "environment_factory", "rollout_func"], help="how TRL plays (default: as fits)")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results go (default: out, beside this script)")
    asked = parser.parse_args()

    given = parts(HERE, kinds=asked.tasks, pay=asked.reward, form=asked.form, out=asked.out)
    config = GRPOConfig(
        output_dir=str(given.scores.out / "trl"),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.generations,
        gradient_accumulation_steps=asked.prompts,
        num_generations=asked.generations,
        max_completion_length=given.most_tokens,
        generation_kwargs={"max_new_tokens": given.max_tokens},
        max_tool_calling_iterations=given.turns,
        temperature=given.temperature,
        learning_rate=asked.learning_rate,
        lr_scheduler_type="constant",
        bf16=precision("auto")[0] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=asked.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = GRPOTrainer(
        model=given.model,
        processing_class=given.tokenizer,
        args=config,
        train_dataset=given.dataset,
        reward_funcs=given.reward,
        rollout_func=given.rollout_func,
        environment_factory=given.environment_factory,
    )
    try:
        trainer.train()
    except (KeyboardInterrupt, Stopped, CapError) as early:  # a judge that is paid for keeps to the caps of the run's settings
        why = str(early).partition(";")[0] or "interrupted"
        print(f"ended after {trainer.state.global_step} updates: {why}; given again, it begins from the start")
        if not trainer.state.global_step:
            sys.exit("nothing was trained, so nothing is saved")
    print(f"model: {given.save(trainer)}")
    print(f"curve: {given.scores.out / 'curve.svg'}")


if __name__ == "__main__":
    try:
        main()
    except SharpenError as error:
        sys.exit(f"sharpen: {error}")
