"""The trainers that belong to a model."""

from __future__ import annotations

from sharpen.errors import ModelError
from sharpen.records import Model
from sharpen.training.base import Trainer
from sharpen.training.preference import PreferenceTrainer


def trainer_for(model: Model) -> Trainer:
    """TRL for a pretrained model, the fake for a scripted one. ModelError for an endpoint: its weights are not here."""
    if _scripted(model):
        from sharpen.training import scripted

        return scripted.train
    from sharpen.training import sft

    return sft.train


def preference_trainer_for(model: Model) -> PreferenceTrainer:
    """The same, for pairs."""
    if _scripted(model):
        from sharpen.training import scripted

        return scripted.prefer
    from sharpen.training import preference

    return preference.train_preference


def _scripted(model: Model) -> bool:
    if model.kind == "endpoint":
        raise ModelError(f"{model.name} is an endpoint and cannot be trained here; name a local folder or a hub id as model")
    return model.kind == "scripted"
