"""The networks of the benchmarks, in torch alone: a peer's environment reads them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """An encoder whose attention is written as linear layers. By default ViT-B/16; with `tokens`, of text.

    Args:
        layers: number of layers.
        width: of each position.
        heads: of the attention.
        hidden: width of the perceptron within a layer.
        classes: outputs.
        tokens: size of the vocabulary; None: images of 224 x 224 pixels in patches of 16 x 16.
    """

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        hidden: int = 3072,
        classes: int = 10,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 16, 16) if tokens is None else nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.first(x).flatten(2).transpose(1, 2) if isinstance(self.first, nn.Conv2d) else self.first(x.long())
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


class Layer(nn.Module):
    """A transformer's layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.a, self.b = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """The next layer's input."""
        b, t, w = h.shape
        q, k, v = self.qkv(self.a(h)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w)
        h = h + self.out(mixed)
        return h + self.down(nn.functional.gelu(self.up(self.b(h))))


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, as in ResNet-18."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(i, o, 3, stride, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.short = nn.Identity() if i == o and stride == 1 else nn.Conv2d(i, o, 1, stride)
        self.act, self.end = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut plus what the convolutions make of it."""
        return self.end(self.short(x) + self.two(self.act(self.one(x))))


def resnet18() -> nn.Module:
    """ResNet-18 of 224 x 224 pixels without its normalisations, whose affine parameters have no rule."""
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for o, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        parts.append(BasicBlock(width, o, stride))
        width = o
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def conv(i: int, o: int, pool: bool = False) -> nn.Sequential:
    """Convolution, norm, ReLU, and a pooling by choice."""
    parts: list[nn.Module] = [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolutions around which the input is carried, as in ResNet-9."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Input plus what the convolutions make of it."""
        return x + self.inner(x)


def resnet9(widths: tuple[int, int, int, int] = (64, 128, 256, 512)) -> nn.Sequential:
    """ResNet-9 of 32 x 32 pixels."""
    a, b, c, d = widths
    body = [conv(3, a), conv(a, b, True), Residual(b), conv(b, c, True), conv(c, d, True), Residual(d)]
    return nn.Sequential(*body, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(d, 10))


def mlp() -> nn.Sequential:
    """784-512-256-10."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


def network(name: str) -> nn.Module:
    """The network of a comparison of fits: "resnet9" of half the width, "transformer" of 3 layers, or "mlp".

    Args:
        name: one of these.
    """
    torch.manual_seed(0)
    if name == "resnet9":
        return resnet9((32, 64, 128, 256))
    return Transformer(3, 256, 8, 1024, 4, 2000) if name == "transformer" else mlp()


def layers_of(model: nn.Module) -> list[str]:
    """Names of the layers that both sides have a rule for."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
