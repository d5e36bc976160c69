"""The model card: what a model was made from, how, and how good it was measured to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from sharpen.models import ADAPTER
from sharpen.records import Lineage, Model, Terms
from sharpen.report.page import RungView, RunView, copied, outcome, points, rate
from sharpen.terms import TASK_SOURCE


def model_card(
    model: Model, folder: str, view: RunView | None = None, rung: RungView | None = None, *, adapter: bool = False, licence: str = ""
) -> str:
    """The card of ``model`` in Markdown, the hub's metadata on top. ``folder`` is where it will lie; ``view`` and ``rung`` what it comes from, where known.

    ``licence`` is the hub's id of the licence that it is given, "" where none is named.
    """
    from huggingface_hub import ModelCardData

    base, lineage = model.lineage.base, model.lineage
    tags = ["sharpen", *(["distillation"] if any(terms != TASK_SOURCE for terms in lineage.terms) else [])]
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        license=licence or None,
        datasets=_datasets(view) or None,
        base_model=base if "/" in base else None,  # the hub takes ids of its own only
    )
    card = _card().render(
        data=data.to_yaml(), model=model, folder=folder, view=view, rung=rung, adapter=adapter, on_top_of=_start(model) if adapter else base,
        licence=licence, misnamed=misnamed(folder, lineage.terms), how=learnt(lineage),
    )  # fmt: skip
    return card.strip() + "\n"


@cache
def _card() -> Template:
    # Markdown, not HTML: escaped, it would be read as it stands.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"rate": rate, "points": points, "outcome": outcome, "copied": copied}
    return environment.get_template("card.md.j2")


def learnt(lineage: Lineage) -> str:
    """How a model of this lineage was trained last, in words: every trainer leaves in it what it went by."""
    how = lineage.settings
    if how.get("method") == "grpo":
        return "RL, with GRPO, from what supervision had made"
    if taught := how.get("on_policy"):
        whose = "the model's own answers" if taught["lmbda"] == 1 else "answers of its own and of its teacher's"
        return f"supervision alone: on-policy distillation, in which the teacher {taught['teacher']} scores every token of {whose}"
    if preferred := how.get("preference"):
        beside = " beside an NLL term" if preferred["nll"] else ""
        return f"supervision alone: DPO{beside}, on {preferred['trained_on']} pairs of a try that passed and one that did not"
    if teacher := how.get("teacher"):
        return f"supervision alone: SFT on tries of the teacher {teacher} that were selected for it, and on demonstrations where there were some"
    return "supervision alone: SFT on demonstrations, or on tries of its own, that were selected for it"


def misnamed(name: str, terms: Iterable[Terms]) -> list[str]:
    """What of ``terms`` the model's ``name`` does not keep to: conditions that its name begins with a word."""
    asked = ((one, re.search(r'^naming: .*begins with "(.+?)"', condition)) for one in terms for condition in one.conditions)
    return [
        f'the terms of {one.teacher} ({one.licence}) ask for a name that begins with "{found[1]}", and this one is {name!r}'
        for one, found in asked
        if found is not None and not name.casefold().startswith(found[1].casefold())
    ]


def _datasets(view: RunView | None) -> list[str]:
    """The hub's data set that the run's tasks come from, where they come from one."""
    tasks = (yaml.safe_load(view.settings_yaml) if view is not None else None) or {}
    name = tasks["tasks"].get("id", "") if isinstance(tasks.get("tasks"), dict) else ""
    return [name] if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else []


def _start(model: Model) -> str:
    """The name of the model that the adapter was trained on top of."""
    config = json.loads((Path(model.path) / ADAPTER / "adapter_config.json").read_text())
    return str(config["base_model_name_or_path"])
