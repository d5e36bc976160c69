"""The chat template that belongs to a model."""

from __future__ import annotations

from sharpen.chat.base import Template
from sharpen.chat.scripted import ScriptedTemplate
from sharpen.chat.template import ChatTemplate
from sharpen.errors import ModelError
from sharpen.records import Model


def load_template(model: Model) -> Template:
    """The template of ``model``. ModelError where it has none: a served endpoint renders on its own side."""
    if model.kind == "scripted":
        return ScriptedTemplate(model.name)
    if model.kind == "endpoint":
        raise ModelError(f"{model.name} is an endpoint, whose tokens are not known here; name a local model folder")
    return ChatTemplate.load(model.path)
