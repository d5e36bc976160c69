"""vLLM through sharpen against vLLM's own offline engine, on the multi-turn requests of ``sampling.py``.

    python benchmarks/vllm_server.py --python .venv-vllm/bin/python --out vllm.json --repeats 3 -- --kv-cache-memory-bytes 500M

Both arms are up at once, in processes of their own, and take turns within a repeat; the ratio is taken within a repeat. The offline arm is
``LLMEngine.add_request`` and ``step`` in one loop on the same prompt ids, without detokenising: the engine's own speed, no HTTP between. What
follows ``--`` goes to sharpen's server and to the offline engine alike. On one GPU give each half: ``-- --gpu-memory-utilization 0.4``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sampling import Count, Episode, conversation, cpu, marked, ours, seeded, show, summary, synthetic

from sharpen import loop
from sharpen.chat.template import ChatTemplate
from sharpen.models import load_model
from sharpen.policies import leash
from sharpen.policies.base import Conversation, Sampling, turn_seed
from sharpen.policies.vllm import Vllm, VllmPolicy
from sharpen.records import Message, TurnTokens

OURS = ("model", "precision", "max_model_len", "episodes", "turns", "max_tokens", "temperature", "seed")


def requests(args: argparse.Namespace, repeat: int) -> tuple[list[Episode], Sampling]:
    """The same for both arms. Words of this repeat only, or the prefix caches would still hold the last one's."""
    episodes = [
        Episode((*e.opening[:-1], marked(e.opening[-1], repeat, "vllm")), e.observations)
        for e in synthetic(args.episodes, args.turns, args.seed)
    ]
    return episodes, Sampling(temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed + repeat)


def offline(args: argparse.Namespace) -> None:
    """The other process, in vLLM's interpreter: one line in (which repeat), one line out (what it did)."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    device = {"auto": "float32" if current_platform.is_cpu() else "bfloat16", "f32": "float32", "bf16": "bfloat16"}
    settings = ["--model", args.model, "--dtype", device[args.precision], "--generation-config", "vllm"]
    settings += (
        ["--enforce-eager", "--no-enable-chunked-prefill"] if current_platform.is_cpu() else []
    )  # as sharpen's server, and for its reasons
    settings += ["--max-model-len", str(args.max_model_len), *args.rest]
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(settings)))
    template = ChatTemplate.load(args.model)
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        episodes, sampling = requests(args, int(line))
        count = Count()
        states: list[tuple[list[str], list[TurnTokens]]] = [([], []) for _ in episodes]
        prompts: dict[str, list[int]] = {}

        def ask(index: int) -> None:
            talk = conversation(episodes[index], *states[index])  # noqa: B023  (called within this round of the loop)
            prompt = template.prompt(talk.messages, talk.turns)
            name = f"{index}-{len(talk.turns)}-{line.strip()}"  # noqa: B023
            prompts[name] = prompt  # noqa: B023
            settings = SamplingParams(
                temperature=sampling.temperature,  # noqa: B023
                top_p=sampling.top_p,  # noqa: B023
                max_tokens=sampling.max_tokens,  # noqa: B023
                seed=turn_seed(seeded(sampling, index).seed, prompt),  # noqa: B023
                stop_token_ids=sorted(template.end_ids),
                ignore_eos=True,
                detokenize=False,
            )
            engine.add_request(name, {"prompt_token_ids": prompt}, settings)

        began = time.perf_counter()
        for index in range(len(episodes)):
            ask(index)
        while engine.has_unfinished_requests():
            for done in engine.step():
                if done.finished:
                    index, output = int(done.request_id.split("-")[0]), list(done.outputs[0].token_ids)
                    prompt = prompts[done.request_id]
                    answers, turns = states[index]
                    answers.append(template.answer(output))
                    turns.append(TurnTokens(prompt=tuple(prompt), output=tuple(output)))
                    count.add(len(prompt), len(output))
                    if len(turns) <= len(episodes[index].observations):
                        ask(index)
        count.seconds = time.perf_counter() - began
        print(json.dumps(vars(count)), file=out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has vLLM")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("vllm.json"))
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    args.rest = sys.argv[split + 1 :]
    if args.offline:
        offline(args)
        return

    model = load_model(args.model)
    settings = Vllm(python=args.python, args=tuple(args.rest), precision=args.precision, max_model_len=args.max_model_len)
    args.model = model.path
    passed = [word for name in OURS for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    source = Path(__file__).parent.parent / "src"
    child = subprocess.Popen(
        [sys.executable, leash.__file__, str(os.getpid()), args.python, __file__, "--offline", *passed, "--", *args.rest],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": str(source)},
    )
    assert child.stdin and child.stdout
    if not child.stdout.readline():
        sys.exit(f"the offline arm did not start; see for yourself: {' '.join(map(str, child.args))}")  # type: ignore[union-attr]
    policy = VllmPolicy(model, settings)
    began = time.perf_counter()
    hello = Conversation(messages=(Message(role="user", content="Hi"),))
    loop.run(policy.complete(hello, Sampling(max_tokens=1)))
    load_seconds = time.perf_counter() - began
    counts: dict[str, list[Count]] = {"sharpen": [], "vllm offline": []}
    for repeat in range(-1, args.repeats):  # the first warms both up and is not counted
        counts["sharpen"].append(ours(policy, *requests(args, repeat)))
        print(repeat, file=child.stdin, flush=True)
        counts["vllm offline"].append(Count(**json.loads(child.stdout.readline())))
        if repeat < 0:
            counts = {arm: [] for arm in counts}
        else:
            print(f"repeat {repeat + 1}: " + ", ".join(f"{arm} {done[-1].seconds:.1f} s" for arm, done in counts.items()), flush=True)
    child.stdin.close()
    child.wait()
    loop.run(policy.close())
    versions = "import torch, transformers, vllm; print({m.__name__: m.__version__ for m in (torch, transformers, vllm)})"
    result: dict[str, Any] = {
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip(),
        "hardware": {"cpu": cpu(), "cores": os.cpu_count()},
        "versions": subprocess.run([args.python, "-c", versions], capture_output=True, text=True, check=False).stdout.splitlines()[-1:],
        "settings": {key: str(value) for key, value in vars(args).items() if key != "offline"},
        "load_seconds": load_seconds,
        **summary(counts),
    }
    show("multi-turn", result)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
