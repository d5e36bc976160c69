"""The trainer that belongs to a model."""

from __future__ import annotations

from sharpen.errors import ModelError
from sharpen.records import Model
from sharpen.training.base import Trainer


def trainer_for(model: Model) -> Trainer:
    """TRL for a pretrained model, the fake for a scripted one. ModelError for an endpoint: its weights are not here."""
    if model.kind == "endpoint":
        raise ModelError(f"{model.name} is an endpoint and cannot be trained here; name a local folder or a hub id as model")
    if model.kind == "scripted":
        from sharpen.training import scripted

        return scripted.train
    from sharpen.training import sft

    return sft.train
