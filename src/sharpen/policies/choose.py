"""Which engine runs a model: the one the settings name, or the fastest one here that can."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from msgspec.structs import replace

from sharpen.errors import SettingsError
from sharpen.models import cache_folder, read_config
from sharpen.policies.base import Policy
from sharpen.policies.endpoint import Batch, Endpoint, EndpointPolicy
from sharpen.policies.endpoint_batch import BatchPolicy
from sharpen.policies.gguf_file import why_not
from sharpen.policies.openvino import OpenVino, OpenVinoPolicy
from sharpen.policies.plugin import PolicyPlugin, plugin_policy
from sharpen.policies.scripted import Scripted, open_scripted
from sharpen.policies.transformers import Transformers, TransformersPolicy, best_device
from sharpen.policies.vllm import Vllm, VllmPolicy
from sharpen.records import Model, Record


class Auto(Record, frozen=True, kw_only=True, tag_field="engine", tag="auto"):
    """Let the model and this machine decide."""


Concrete = OpenVino | Transformers | Vllm | Endpoint | Scripted
Engine = Auto | Concrete | PolicyPlugin


def open_policy(model: Model, engine: Engine, logs: Path | None = None) -> tuple[Policy, str]:
    """Open ``model``; with it, which engine was picked and why. SettingsError where model and engine do not fit.

    An engine that keeps a log keeps it in the folder ``logs``, else in a temporary one. Batches are kept there too, else in the user's cache.
    """
    if isinstance(engine, PolicyPlugin):
        return plugin_policy(model, engine), f"plugin {engine.name}: as set"
    chosen, why = choose(model) if isinstance(engine, Auto) else (engine, "as set")
    kind = "scripted" if isinstance(chosen, Scripted) else "endpoint" if isinstance(chosen, Endpoint) else "pretrained"
    if kind != model.kind:
        tag = chosen.__struct_config__.tag
        raise SettingsError(f"{model.name} is a {model.kind} model, which the engine {tag} cannot run; leave the engine to auto")
    match chosen:
        case Scripted():
            return open_scripted(model, chosen), f"scripted: {why}"
        case Endpoint():
            filled = replace(chosen, base_urls=chosen.urls or (model.path,), base_url="", model=chosen.model or model.name)
            if (batch := filled.batch) is None:
                return EndpointPolicy(filled), f"endpoint: {why}"
            kept = Path(batch.folder) if batch.folder else (logs or cache_folder()) / "batches"
            batches = BatchPolicy(filled, kept)
            return batches, f"endpoint: {why}, in {batches.api.name}; they lie in {batches.ledger.folder}"
        case OpenVino():
            openvino = OpenVinoPolicy(model, chosen)
            has = "has bf16" if openvino.precision == "bf16" else "has no bf16"
            return (
                openvino,
                f"openvino: {why}; {openvino.precision} {'as set' if chosen.precision != 'auto' else f'because this CPU {has}'}",
            )
        case Transformers():
            transformers = TransformersPolicy(model, chosen)
            return transformers, f"transformers: {why}; {transformers.precision} on {transformers.device}"
        case Vllm():
            vllm = VllmPolicy(model, chosen, logs)
            precision = "bf16 on a GPU, f32 on a CPU" if chosen.precision == "auto" else chosen.precision
            return vllm, f"vllm: {why}; {precision}; its log is {vllm.log}"


def batch_of(engine: Engine) -> Batch | None:
    """How ``engine`` gathers requests, where it does."""
    return engine.batch if isinstance(engine, Endpoint) else None


def choose(model: Model) -> tuple[Concrete, str]:
    """The engine for ``model`` on this machine, and the reason."""
    if model.kind == "scripted":
        return Scripted(), "a scripted model"
    if model.kind == "endpoint":
        return Endpoint(base_url=model.path, model=model.name), f"served at {model.path}"
    device = best_device()
    if device == "cuda" and importlib.util.find_spec("vllm") is not None:
        return Vllm(), "a GPU (cuda), and vLLM is installed"
    if device != "cpu":
        return Transformers(), f"a GPU ({device})"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Transformers(), f"no GPU, and a {platform.machine()} CPU"
    if importlib.util.find_spec("openvino_genai") is None:
        return Transformers(), "no GPU, and OpenVINO is not installed (sharpen[openvino] is faster)"
    if reason := why_not(read_config(model.path)):
        return Transformers(), f"no GPU, and OpenVINO cannot run it: {reason}"
    return OpenVino(), "x86 CPU without a GPU, Llama-like weights"
