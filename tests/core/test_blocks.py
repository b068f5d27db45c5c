"""What is valued: which parameters are chosen, which layers have a rule, and models that stretch both."""

from __future__ import annotations

import oracles
import pytest
import torch
from core.cases import by_class, cross_entropy, error, influence
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rayinf.core.blocks import Block, find_blocks, from_matrix, require_rules, to_matrix
from rayinf.errors import InputError

# What `oracles.textbook_influence` has.
PEERS = "layer_mean:0.1"


class Attention(nn.Module):
    """Words, attention (whose layers are read rather than called), a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attention = nn.Embedding(9, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def names(model: nn.Module, parameters: str | list[str]) -> list[str]:
    return [b.name for b in find_blocks(model, parameters)]


def test_what_is_chosen() -> None:
    model = Attention()
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    loose = [*(f"attention.{n}" for n in attention), "norm.weight", "norm.bias"]
    assert names(model, "all") == ["words", *loose, "head"]
    assert names(model, "supported") == ["words", "head"]
    assert names(model, "last") == ["head"]
    assert names(model, ["head", "words"]) == ["words", "head"]
    assert names(model, "norm") == ["norm.weight", "norm.bias"]
    assert names(model, "attention.in_proj_bias") == ["attention.in_proj_bias"]
    assert sum(b.numel for b in find_blocks(model, "all")) == sum(p.numel() for p in model.parameters())


def test_a_name_is_no_prefix_of_another() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "head2": nn.Linear(2, 2)})
    assert names(model, "head") == ["head"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["haed"], r"no module 'haed'\. Fix: did you mean head"),
        ([], "selects no parameters"),
        (["body.1"], "selects no parameters"),
    ],
)
def test_a_choice_of_nothing_is_refused(parameters: list[str], message: str) -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "head": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=message):
        find_blocks(model, parameters)


def test_last_needs_a_linear_layer() -> None:
    with pytest.raises(InputError, match=r"found no torch\.nn\.Linear"):
        find_blocks(nn.Conv1d(2, 2, 1), "last")


@pytest.mark.parametrize(
    "layer",
    [
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.Embedding(5, 3, max_norm=1.0),
        nn.Embedding(5, 3, scale_grad_by_freq=True),
        nn.EmbeddingBag(5, 3),
        nn.ConvTranspose1d(2, 2, 3),
        nn.Bilinear(2, 2, 2),
    ],
)
def test_layers_without_a_rule(layer: nn.Module) -> None:
    blocks = find_blocks(nn.Sequential(layer), "all")
    assert {b.kind for b in blocks} <= {"loose", "linear"}
    assert "loose" in {b.kind for b in blocks}
    assert "0" not in [b.name for b in blocks]


def test_a_shared_layer_is_one_block_and_a_shared_weight_is_none() -> None:
    layer = nn.Linear(3, 3)
    assert names(nn.Sequential(layer, nn.ReLU(), layer), "all") == ["0"]
    other = nn.Linear(3, 3)
    other.weight = layer.weight
    assert names(nn.Sequential(layer, other), "all") == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Conv2d(4, 6, (2, 3), groups=2), nn.Embedding(5, 3)]
)
def test_a_matrix_has_the_bias_last_and_goes_back(layer: nn.Module) -> None:
    (block,) = find_blocks(layer, "all")
    held = dict(layer.named_parameters())
    matrix = to_matrix(block, [held[n] for n in block.parameters])
    assert matrix.shape == block.shape
    truth = oracles.layer_matrix(layer, *held.values())
    assert torch.equal(matrix, truth)
    back = from_matrix(block, matrix, held)
    assert all(torch.equal(back[n], value) for n, value in held.items())


def test_many_parameters_without_a_rule_are_summed_up() -> None:
    model = nn.Sequential(*(nn.LayerNorm(2) for _ in range(6)), nn.Linear(2, 3))
    with pytest.raises(InputError, match=r"12 of the valued parameters \(72\.73% of 33\).* and 4 more\. Fix: value"):
        require_rules(model, find_blocks(model, "all"), "ekfac")
    require_rules(model, find_blocks(model, "supported"), "ekfac")


def words_and_labels() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(9, (24, 5)), torch.arange(24) % 3


@pytest.mark.parametrize("curvature", ["identity", "ggn", "exact"])
def test_attention_is_valued_whole(curvature: str) -> None:
    x, y = words_and_labels()
    model = Attention().double().eval()
    rows = oracles.row_gradients(model, cross_entropy, x, y)
    queries = by_class(rows, y, 3)
    if curvature == "identity":
        truth, damping = oracles.identity_influence(queries, rows), None
    else:
        with sdpa_kernel(SDPBackend.MATH):
            H = (oracles.hessian if curvature == "exact" else oracles.ggn)(model, cross_entropy, x, y)
        damping = float(1e-3 + 2 * (-torch.linalg.eigvalsh(H).min()).clamp(min=0))
        truth = oracles.dense_influence(queries, rows, H, 0.0, damping)
    found = influence(model, (x, y), (x, y), curvature=curvature, damping=damping)
    assert error(found, truth) < 1e-8


def test_what_attention_has_rules_for_is_valued_by_ekfac() -> None:
    x, y = words_and_labels()
    model = Attention().double().eval()
    with pytest.raises(InputError, match=r"attention\.out_proj\.weight"):
        influence(model, (x, y), (x, y))
    queries = {n: by_class(oracles.layer_row_gradients(model, cross_entropy, x, y, n), y, 3) for n in ("words", "head")}
    truth = oracles.textbook_influence(model, cross_entropy, (x, y), queries, ["words", "head"])
    assert error(influence(model, (x, y), (x, y), {"parameters": "supported"}, damping=PEERS), truth) < 1e-6


@pytest.mark.parametrize("curvature", ["identity", "exact"])
def test_a_model_that_torch_func_cannot_pass_is_refused(curvature: str) -> None:
    torch.manual_seed(0)
    model, x, y = Recurrent().double().eval(), torch.randn(20, 4, 4, dtype=torch.float64), torch.arange(20) % 3
    with pytest.raises(InputError, match=r"torch\.func cannot"):
        influence(model, (x, y), (x, y), curvature=curvature, damping=1.0)
    rows = oracles.layer_row_gradients(model, cross_entropy, x, y, "head")
    truth = oracles.textbook_influence(model, cross_entropy, (x, y), {"head": by_class(rows, y, 3)}, ["head"])
    assert error(influence(model, (x, y), (x, y), {"parameters": "last"}, damping=PEERS), truth) < 1e-6


def test_the_callers_grad_mode_does_not_matter() -> None:
    x, y = words_and_labels()
    model = Attention().double().eval()
    how = {"curvature": "ggn", "damping": 1e-3}
    task = {"parameters": ["words", "norm", "head"]}
    truth = influence(model, (x, y), (x, y), task, **how)
    with torch.no_grad():
        assert torch.equal(influence(model, (x, y), (x, y), task, **how), truth)


def test_a_block_counts_its_parameters() -> None:
    block = Block("conv", "conv", (2, 3, 19), ("conv.weight", "conv.bias"))
    assert block.numel == 114
    assert block.has_bias
