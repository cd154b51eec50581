"""`vit`: a small vision transformer (Dosovitskiy et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.training.signature import NetworkSignature

_DEPTH, _HEADS, _PATCHES = 4, 4, 8


class SelfAttention(nn.Module):
    """Attention between tokens, of dense layers that can be whitened each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [batch, number, width]."""
        heads = [
            layer(tokens).unflatten(2, (_HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        answer: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return answer


class EncoderBlock(nn.Module):
    """Attention and two dense layers, each after layer normalisation and beside a shortcut."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width))
        self.dense = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [batch, number, width]."""
        attended: Tensor = tokens + self.attention(tokens)
        answer: Tensor = attended + self.dense(attended)
        return answer


class VisionTransformer(nn.Module):
    """Patches as tokens, a learnt position, encoder blocks, the mean over tokens, and logits."""

    def __init__(self, asked: NetworkSignature) -> None:
        super().__init__()
        width, patch = _HEADS * asked.width, -(-asked.size // _PATCHES)
        number = -(-asked.size // patch)
        border = number * patch - asked.size  # zeros at the right and below, up to whole patches
        self.pad = nn.ZeroPad2d((0, border, 0, border))
        self.patches = nn.Conv2d(asked.channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, number * number, width))
        blocks = [EncoderBlock(width, asked.hidden) for _ in range(_DEPTH)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, asked.outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes]."""
        tokens = self.patches(self.pad(images)).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def vit(asked: NetworkSignature) -> nn.Module:
    """Return four blocks of width 4 `width` with `hidden` units, over at most 8 × 8 patches."""
    return VisionTransformer(asked)
