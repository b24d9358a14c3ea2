"""Lossless sparse weight sync: one publisher, any number of receivers that never vote.

    with pccl.weights.Publisher(listen="127.0.0.1:48150") as publisher:     # the trainer
        publisher.publish(model.state_dict())                               # after each step

    with pccl.weights.Receiver("127.0.0.1:48150") as receiver:              # a rollout worker
        pulled = receiver.pull(model.state_dict(), timeout_s=60)            # exactly the same bits

docs/WEIGHT_SYNC.md says what travels and what happens when somebody dies.
"""

from pccl.weights.errors import BaseMismatch, CorruptUpdate, RevisionExists
from pccl.weights.publisher import Published, Publisher
from pccl.weights.receiver import Pulled, Receiver

__all__ = [
    "BaseMismatch",
    "CorruptUpdate",
    "Published",
    "Publisher",
    "Pulled",
    "Receiver",
    "RevisionExists",
]
