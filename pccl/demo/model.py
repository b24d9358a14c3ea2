"""A small GPT over bytes, with all its parameters in one flat tensor.

The layers' parameters and gradients are windows into two flat tensors, so a gradient bucket is a
slice, the optimizer sees one parameter, and the whole training state is three flat arrays and a
counter: easy to average, to send to a newcomer and to hash.  Invariant: peers that start from the
same seed and apply the same averaged gradients hold the same bits after every step.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pccl.demo.peer_config import ModelShape

VOCABULARY = 256  # a token is a byte
WARM_UP_STEPS = 10
GRADIENT_LENGTH_MAX = 1.0
EVALUATED_ROWS_MAX = 16  # at once; as much memory as a training batch


class Block(nn.Module):
    """Causal attention, then a two-layer perceptron, each added to its normalised input."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.queries_keys_values = nn.Linear(shape.width, 3 * shape.width)
        self.attention_out = nn.Linear(shape.width, shape.width)
        self.perceptron_norm = nn.LayerNorm(shape.width)
        self.widen = nn.Linear(shape.width, 4 * shape.width)
        self.narrow = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        mixed = self.queries_keys_values(self.attention_norm(x))
        heads = mixed.view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attention_out(seen.transpose(1, 2).reshape(batch, length, width))
        hidden = functional.gelu(self.widen(self.perceptron_norm(x)), approximate="tanh")
        narrowed: Tensor = self.narrow(hidden)
        return x + narrowed


class ByteGPT(nn.Module):
    """Predicts the next byte at every place of a text of at most `shape.context` bytes."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.bytes_in = nn.Embedding(VOCABULARY, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                # Outputs added to the residual stream start smaller, so depth keeps its scale.
                adds = name.endswith(("attention_out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if adds else 0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Returns the mean loss, in nats per byte, of text[:, 1:] given what stands before it."""
        tokens, targets = text[:, :-1], text[:, 1:]
        x = self.bytes_in(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.bytes_in.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Trainer:
    """A ByteGPT, its flat parameters and gradients, and AdamW over them.

    Not thread-safe.  `parameters`, `momentum` and `variance` may be overwritten in place by a state
    transfer, followed by `resume(step)`.
    """

    def __init__(
        self, shape: ModelShape, *, seed: int, steps: int, peak_rate: float = 3e-3
    ) -> None:
        torch.manual_seed(seed)
        self._steps = steps
        self._peak_rate = peak_rate
        self.model = ByteGPT(shape)
        own = list(self.model.parameters())
        self.parameters = torch.cat([p.detach().flatten() for p in own])
        self.gradients = torch.zeros_like(self.parameters)
        begin = 0
        for parameter in own:
            window = slice(begin, begin + parameter.numel())
            parameter.data = self.parameters[window].view_as(parameter)
            parameter.grad = self.gradients[window].view_as(parameter)
            begin = window.stop
        self.momentum = torch.zeros_like(self.parameters)
        self.variance = torch.zeros_like(self.parameters)
        self._flat = nn.Parameter(self.parameters)
        self._flat.grad = self.gradients
        self._optimizer = torch.optim.AdamW([self._flat], betas=(0.9, 0.95), weight_decay=0.01)
        self._step_count = torch.tensor(0.0)
        # Made here and not by the first update, so that a newcomer's can be received in place.
        self._optimizer.state[self._flat] = {
            "step": self._step_count,
            "exp_avg": self.momentum,
            "exp_avg_sq": self.variance,
        }

    def resume(self, step: int) -> None:
        """Says that the tensors hold the state after `step` updates."""
        self._step_count.fill_(float(step))

    def buckets(self, count: int) -> list[Tensor]:
        """Cuts the gradients into `count` contiguous windows of nearly equal size."""
        return list(torch.tensor_split(self.gradients, count))

    def backward(self, text: Tensor) -> float:
        """Fills the gradients with those of the loss on `text`; returns the loss."""
        self.gradients.zero_()
        loss: Tensor = self.model(text)
        loss.backward()
        return float(loss.detach())

    def update(self, step: int) -> None:
        """Applies the gradients, which by now are the average over all peers, as step `step`."""
        assert int(self._step_count) == step, (int(self._step_count), step)
        # Early gradients can be huge.  Equal on all peers, as they run on machines of one kind.
        length = float(self.gradients.norm())
        if length > GRADIENT_LENGTH_MAX:
            self.gradients.mul_(GRADIENT_LENGTH_MAX / length)
        self._optimizer.param_groups[0]["lr"] = self._peak_rate * rate_at(step, self._steps)
        self._optimizer.step()

    @torch.no_grad()
    def evaluate(self, text: Tensor) -> float:
        """Returns the mean loss on `text`, one example a row."""
        parts = torch.tensor_split(text, math.ceil(len(text) / EVALUATED_ROWS_MAX))
        return sum(float(self.model(rows)) * len(rows) for rows in parts) / len(text)

    def digest(self) -> str:
        """Returns the SHA-256 of all parameters."""
        return hashlib.sha256(self.parameters.numpy().tobytes()).hexdigest()


def rate_at(step: int, steps: int) -> float:
    """Returns the learning rate as a share of its peak: a linear rise, then half a cosine."""
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    return rise * (0.1 + 0.45 * (1.0 + math.cos(math.pi * step / steps)))


def training_batch(text: Tensor, *, rows: int, context: int, seed: int, step: int) -> Tensor:
    """Draws `rows` examples of `context` + 1 bytes, alike for alike arguments.

    A batch depends on the step and not on what was drawn before, so that a peer that joins late
    needs no generator's state.
    """
    dice = torch.Generator().manual_seed((seed << 32) + step)
    starts = torch.randint(len(text) - context, (rows, 1), generator=dice)
    return text[starts + torch.arange(context + 1)].long()


def held_out_batch(text: Tensor, *, rows: int, context: int) -> Tensor:
    """Takes `rows` examples at even distances."""
    starts = torch.linspace(0, len(text) - context - 1, rows).long().unsqueeze(1)
    return text[starts + torch.arange(context + 1)].long()
