"""A small GPT whose tokens are characters, with the architecture of nanoGPT."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdlab.models.checks import check_int

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class Block(nn.Module):
    """A pre-norm transformer block: causal self-attention, then a two-layer MLP, both inside residual connections.

    Attention is made of linear layers and not of torch's ``MultiheadAttention``, whose input projection is a bare
    parameter. Every decayed weight is therefore the ``weight`` of a layer.

    Maps (batch, length, width) to the same shape. The arguments have the same meaning as in :class:`GPT`.
    """

    def __init__(self, width: int, heads: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        qkv = self.attend(self.norm1(hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        hidden = hidden + self.drop(self.project(mixed.transpose(1, 2).flatten(2)))
        return hidden + self.mlp(self.norm2(hidden))


class GPT(nn.Module):
    """A GPT that predicts the next character at every position.

    Maps int64 tokens (batch, length) with length <= context to logits (batch, length, classes). The token embedding
    and the output layer share their weight. Weights are initialized as in GPT-2, from a normal distribution with
    standard deviation 0.02, or ``0.02 / sqrt(2 depth)`` in the last layer of every residual branch.

    Args:
        input_shape: (context,), the largest length of an input.
        classes: size of the vocabulary, the number of different characters.
        width: size of the hidden state, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads per block.
        dropout: probability in [0, 1) that dropout zeroes an attention weight, or a value of the embeddings or of a
            residual branch's output.
        activation: activation of the MLP, ``gelu`` or ``relu``.

    Raises:
        ValueError: if ``input_shape`` does not have exactly one entry, or if an argument is not allowed (see above).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            shape = tuple(input_shape)
            raise ValueError(f"reads text, tokens (context,), the data set has examples of shape {shape}")
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            check_int(name, value, 1)
        if width % heads:
            raise ValueError(f"width={width}: must be a multiple of heads={heads}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r}: must be a number in [0, 1)")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        self.token = nn.Embedding(classes, width)
        self.position = nn.Embedding(input_shape[0], width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        self._initialize(depth)
        self.head.weight = self.token.weight

    def _initialize(self, depth: int) -> None:
        last_in_branch = {id(layer) for block in self.blocks for layer in (block.project, block.mlp[2])}
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                deviation = 0.02 / math.sqrt(2 * depth) if id(module) in last_in_branch else 0.02
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.ones_like(tokens[:1]).cumsum(1) - 1  # (1, length): 0, 1, 2, ..., in a form torch.fx can trace
        hidden = self.drop(self.token(tokens) + self.position(positions))
        return self.head(self.norm(self.blocks(hidden)))
