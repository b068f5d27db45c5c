"""Trained models as safetensors files of a run's folder."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from rayinf.data.checked_folder import CheckedFolder
from rayinf.data.files import fetched, fill_safetensors
from rayinf.engine.model_digest import model_digest
from rayinf.errors import InputError, RayinfError
from rayinf.task import Task

_ARCHITECTURE = "architecture"


def write_checkpoint(files: CheckedFolder, name: str, model: nn.Module, version: str | None) -> None:
    """Keep a model's tensors, shared ones once, with the digest of its architecture.

    Args:
        files: where.
        name: of the file.
        model: the model.
        version: of `Task(version=...)`.
    """
    metadata = {_ARCHITECTURE: _architecture(model, version)}

    def write(file: Path) -> None:
        fill_safetensors(file, lambda inner: save_model(model, str(inner), metadata))

    files.put(name, write)


def load_checkpoint(files: CheckedFolder, name: str, task: Task) -> nn.Module | None:
    """The task's model with the tensors of a file.

    None where the file is not sound, or is of a model of another architecture, as a user's fit may return one.

    Raises:
        RayinfError: a store does not answer, or refuses.
    """
    if not files.is_sound(name):
        return None
    model = task.build()
    try:
        with fetched(files.path / name) as held:
            with safe_open(held, "pt") as opened:
                architecture = (opened.metadata() or {}).get(_ARCHITECTURE)
            if not architecture or architecture != _architecture(model, task.version):
                return None
            load_model(model, str(held))
    except RayinfError:
        raise
    except (RuntimeError, OSError, ValueError, SafetensorError):
        return None
    return model


def _architecture(model: nn.Module, version: str | None) -> str:
    """What a model is but for the values of its tensors; empty where that cannot be digested."""
    try:
        return model_digest(model, version).architecture
    except InputError:
        return ""
