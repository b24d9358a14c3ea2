"""A publisher or a receiver as a process: does what its standard input says, tells what came of it.

    python weight_peer.py ADDRESS publisher|receiver INDEX COUNT

States are made from a number alone, so that whoever knows it can tell whether every bit is right.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pccl
import pccl.weights
from tests.integration.weight_states import empty_state, make_state, sha_of

TELL_EVERY_S = 0.05


def tell(**fact: object) -> None:
    # In one piece: other threads tell things, too.
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def publish_as_told(address: str, lines: Iterable[str]) -> None:
    """Commands: `publish NUMBER [REVISION]`, `status`."""
    with pccl.weights.Publisher(address, anchor_every=5) as publisher:
        tell(address=publisher.address)
        for line in lines:
            match line.split():
                case ["publish", number, *revision]:
                    state = make_state(int(number))
                    at = int(revision[0]) if revision else None
                    done = publisher.publish(state, at)
                    tell(
                        published=done.revision,
                        sha=sha_of(state),
                        delta=done.delta_bytes,
                        anchor=done.anchor_bytes,
                    )
                case ["status"]:
                    tell(
                        sent=publisher.sent_bytes,
                        receivers=publisher.receivers,
                        reports=publisher.corruption_reports,
                    )
                case _:
                    return


def watch(receiver: pccl.weights.Receiver) -> None:
    """Tells how far the bytes have come, until the process ends."""
    told = (-1, -1)
    while True:
        now = (receiver.received_bytes, receiver.sent_bytes)
        if now != told:
            tell(received=now[0], given=now[1])
            told = now
        time.sleep(TELL_EVERY_S)


def receive_as_told(address: str, lines: Iterable[str]) -> None:
    """Commands: `watch`, `pull AT_LEAST TIMEOUT_S ON_MISMATCH`, `spoil`."""
    state = empty_state()
    with pccl.weights.Receiver(address) as receiver:
        tell(started=True)
        for line in lines:
            match line.split():
                case ["watch"]:
                    threading.Thread(target=watch, args=(receiver,), daemon=True).start()
                case ["pull", at_least, timeout_s, on_mismatch]:
                    pull(receiver, state, int(at_least), float(timeout_s), on_mismatch)
                case ["spoil"]:
                    state["table"][17] ^= 1
                    tell(spoilt=sha_of(state))
                case _:
                    return


def pull(
    receiver: pccl.weights.Receiver,
    state: Mapping[str, Any],
    at_least: int,
    timeout_s: float,
    on_mismatch: Any,
) -> None:
    before = sha_of(state)
    try:
        done = receiver.pull(state, at_least=at_least, timeout_s=timeout_s, on_mismatch=on_mismatch)
    except pccl.PcclError as error:
        tell(failed=type(error).__name__, text=str(error), unchanged=sha_of(state) == before)
        return
    tell(
        pulled=done.revision,
        sha=sha_of(state),
        anchor=done.anchor,
        updates=done.updates,
        received_in_all=receiver.received_bytes,
    )


def main() -> None:
    address, role, _, _ = sys.argv[1:]
    play = publish_as_told if role == "publisher" else receive_as_told
    play(address, map(str.strip, sys.stdin))


if __name__ == "__main__":
    main()
