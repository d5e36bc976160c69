"""The model card: what a model was made from, how, and how good it was measured to be."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sharpen.models import ADAPTER
from sharpen.records import Model
from sharpen.report.page import RungView, RunView, outcome, points, rate


def model_card(model: Model, folder: str, view: RunView | None = None, rung: RungView | None = None, *, adapter: bool = False) -> str:
    """The card of ``model`` in Markdown, the hub's metadata on top. ``folder`` is where it will lie; ``view`` and ``rung`` what it comes from, where known."""
    from huggingface_hub import ModelCardData

    base = model.lineage.base
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["sharpen"],
        base_model=base if "/" in base else None,  # the hub takes ids of its own only
    )
    # Markdown, not HTML: escaped, it would be read as it stands.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"rate": rate, "points": points, "outcome": outcome}
    card = environment.get_template("card.md.j2").render(
        data=data.to_yaml(), model=model, folder=folder, view=view, rung=rung, adapter=adapter, on_top_of=_start(model) if adapter else base
    )
    return card.strip() + "\n"


def _start(model: Model) -> str:
    """The name of the model that the adapter was trained on top of."""
    config = json.loads((Path(model.path) / ADAPTER / "adapter_config.json").read_text())
    return str(config["base_model_name_or_path"])
