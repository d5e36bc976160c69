"""sharpen: everything supervision can give an LLM agent, measured and proved, before anyone reaches for RL.

    from sharpen import sample, sample_many, filter, verify, sft

Names load what they need when first used: ``import sharpen`` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpen.api import Candidate as Candidate
    from sharpen.api import Session as Session
    from sharpen.api import filter as filter
    from sharpen.api import sample as sample
    from sharpen.api import sample_many as sample_many
    from sharpen.api import sft as sft
    from sharpen.api import verify as verify
    from sharpen.errors import Refused as Refused
    from sharpen.errors import SharpenError as SharpenError
    from sharpen.evaluation import EvaluationSettings as EvaluationSettings
    from sharpen.ladder import Ladder as Ladder
    from sharpen.ladder import LadderSettings as LadderSettings
    from sharpen.methods.base import Bench as Bench
    from sharpen.models import load_model as load_model
    from sharpen.policies.scripted import ScriptedPolicy as ScriptedPolicy
    from sharpen.records import Message as Message
    from sharpen.records import Model as Model
    from sharpen.records import Task as Task
    from sharpen.records import Trajectory as Trajectory
    from sharpen.records import Verdict as Verdict
    from sharpen.sampling import SamplingSettings as SamplingSettings
    from sharpen.selection import SelectionSettings as SelectionSettings
    from sharpen.settings import RunSettings as RunSettings
    from sharpen.tasks.base import TaskSet as TaskSet
    from sharpen.tasks.load import load_tasks as load_tasks
    from sharpen.terms import TermsSettings as TermsSettings
    from sharpen.training.base import Training as Training

_HOMES = {
    "api": ("Candidate", "Session", "filter", "sample", "sample_many", "sft", "verify"),
    "errors": ("Refused", "SharpenError"),
    "evaluation": ("EvaluationSettings",),
    "ladder": ("Ladder", "LadderSettings"),
    "methods.base": ("Bench",),
    "models": ("load_model",),
    "policies.scripted": ("ScriptedPolicy",),
    "records": ("Message", "Model", "Task", "Trajectory", "Verdict"),
    "sampling": ("SamplingSettings",),
    "selection": ("SelectionSettings",),
    "settings": ("RunSettings",),
    "tasks.base": ("TaskSet",),
    "tasks.load": ("load_tasks",),
    "terms": ("TermsSettings",),
    "training.base": ("Training",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sharpen' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sharpen.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
