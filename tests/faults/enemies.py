"""Enemies as those who have them attack see them: what they are told, and their process.

What they do is in `mob.py`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.membership.service_ca import CaFolder, init_ca
from pccl.transport.authority import Authority, key_pem, pem
from pccl.transport.identity import Role, peer_id_of_raw
from tests.faults.world import Trouble

MOB = Path(__file__).with_name("mob.py")
END_S = 60.0


def order_for(address: str, peers: list[str], weights: list[str], ca: CaFolder) -> dict[str, Any]:
    """What a mob is told: whom to attack, and with what certificates."""
    targets = [_target(address, coordinator=True)]
    targets += [_target(peer) for peer in peers]
    targets += [_target(door, weights=True) for door in weights]
    now_s = time.time()
    with tempfile.TemporaryDirectory() as folder:
        foreign = init_ca(Path(folder) / "foreign")
        authorities = {"foreign": foreign.authority}
        foreign.close()
    ours, kinds = ca.authority, ("expired", "revoked", "receiver", "outsider")
    authorities |= dict.fromkeys(kinds, ours)
    materials, ids = {}, {}
    for name, authority in authorities.items():
        key = Ed25519PrivateKey.generate()
        ids[name] = peer_id_of_raw(key.public_key().public_bytes_raw())
        leaf = _leaf(authority, key, name, now_s)
        parts = (pem(leaf), key_pem(key), pem(ours.certificate_der))
        materials[name] = [part.decode() for part in parts]
    ticket = ca.make_ticket(Role.TRAINER, uses=1, expires_in_s=3600, endpoints=(address,))
    ca.ledger.enrol(ticket.token_id, ids["revoked"], int(now_s))
    ca.ledger.revoke(ids["revoked"].hex(), int(now_s), "an enemy")
    return {
        "targets": targets,
        "materials": materials,
        "token_id": ticket.token_id.hex(),
        "run_id": ours.run_id.hex(),
        "outsider": ids["outsider"].hex(),
    }


def _target(address: str, *, coordinator: bool = False, weights: bool = False) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"host": host, "port": int(port), "coordinator": coordinator, "weights": weights}


def _leaf(authority: Authority, key: Ed25519PrivateKey, name: str, now_s: float) -> bytes:
    role = Role.RECEIVER if name == "receiver" else Role.TRAINER
    since_s = now_s - 7200 if name == "expired" else now_s
    serial = secrets.token_bytes(16)
    return authority.issue_peer(key.public_key(), role, serial, since_s, 3600.0)


class Mob:
    """A process that attacks one run when it is told to."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(MOB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(json.dumps(order))
        assert self._hear() == {"ready": True}

    def begin(self, count: int) -> None:
        self._say(str(count))

    def end(self) -> dict[str, Any]:
        """Waits until it is through with it; bounded by how long one connection stays."""
        return self._hear()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Trouble("the mob has ended by itself")
        found: dict[str, Any] = json.loads(line)
        return found
