"""What a coordinator knows of a peer, and what of it outlives the coordinator."""

from __future__ import annotations

from pccl.membership.peer import Peer
from pccl.membership.record import AdmittedPeer


def test_a_peer_that_is_restored_has_all_that_was_kept_of_it() -> None:
    saved = AdmittedPeer(
        peer_id=b"p" * 16,
        incarnation=7,
        secret=b"s" * 16,
        host="10.0.0.7",
        port=4007,
        host_key=70,
        hostname="seven",
        pid=777,
        group=1,
        excluded_epoch=3,
        was_native=True,
        min_world=2,
        on_underflow=1,
        straggler_s=0.5,
    )
    assert Peer.restored(saved, 5.0, is_witness=True).admitted() == saved
