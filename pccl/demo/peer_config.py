"""What the parent tells a peer, and the size of the model.

Free of torch, which takes seconds to import and which the parent does without.
"""

import json
from dataclasses import asdict, dataclass

from pccl.demo.methods import all_aboard_at


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    layers: int = 3
    width: int = 128
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """What one peer is told by its parent."""

    coordinator: str
    shard: int
    shards: int
    founders: int
    joining: bool
    newcomers: int
    steps: int
    rows: int
    seed: int
    least_step_s: float
    shape: ModelShape
    method: str = "ddp"  # of pccl.demo.methods

    @classmethod
    def from_json(cls, text: str) -> "PeerConfig":
        told = json.loads(text)
        return cls(**{**told, "shape": ModelShape(**told["shape"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def all_aboard_at(self) -> int:
        """The step from which on every member that is planned for takes part."""
        return all_aboard_at(self.method, self.steps, self.shape.layers)
