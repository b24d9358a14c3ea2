"""Weight sync against wrong bytes, wrong arguments and strangers; all within one process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.transport.framing import frame
from pccl.weights import (
    BaseMismatch,
    Publisher,
    Receiver,
    RevisionExists,
)
from pccl.weights.door import FIRST_WORD_S
from pccl.weights.frames import PROTOCOL, Fetch, Join, codec
from tests.integration.slow_link import SlowLink
from tests.integration.weight_states import empty_state, make_state, sha_of


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher() as made:
        yield made


def pulled(address: str, state: dict[str, Any], **options: Any) -> Receiver:
    receiver = Receiver(address)
    receiver.pull(state, timeout_s=30, **options)
    return receiver


def test_a_chunk_that_is_damaged_on_its_way_is_fetched_again_and_reported(
    publisher: Publisher,
) -> None:
    state = make_state(0)
    done = publisher.publish(state)
    with SlowLink(publisher.address) as link:
        link.flip_a_bit_after(5_000_000)
        target = empty_state()
        with pulled(link.address, target) as receiver:
            assert link.flipped and sha_of(target) == sha_of(state)
            assert publisher.corruption_reports == 1
            assert receiver.received_bytes == done.anchor_bytes, "right chunks were kept"


def test_a_receiver_with_rotten_memory_gives_wrong_bytes_to_nobody(publisher: Publisher) -> None:
    state = make_state(0)
    publisher.publish(state)
    rotten = [pulled(publisher.address, empty_state()) for _ in range(2)]
    for receiver in rotten:
        holding = receiver._fetcher._store.find(1)
        assert holding is not None and isinstance(holding._data, bytearray)
        holding._data[7_000_000] ^= 1
    target = empty_state()
    with pulled(publisher.address, target) as late:
        assert sha_of(target) == sha_of(state)
        assert publisher.corruption_reports == 2
        assert all(receiver.sent_bytes > 0 for receiver in rotten)
        assert late.revision == 1
    for receiver in rotten:
        receiver.close()


def test_receivers_that_were_given_everything_pass_it_on_to_a_late_joiner(
    publisher: Publisher,
) -> None:
    state = make_state(0)
    done = publisher.publish(state)
    first = [pulled(publisher.address, empty_state()) for _ in range(2)]
    target = empty_state()
    with pulled(publisher.address, target):
        assert sha_of(target) == sha_of(state)
        assert publisher.sent_bytes == 2 * done.anchor_bytes
    for receiver in first:
        receiver.close()


def test_a_receiver_that_keeps_nothing_for_others_sends_them_elsewhere(
    publisher: Publisher,
) -> None:
    state = make_state(0)
    publisher.publish(state)
    first = [Receiver(publisher.address, keep_bytes_max=0) for _ in range(2)]
    for receiver in first:
        receiver.pull(empty_state(), timeout_s=30)
    target = empty_state()
    with pulled(publisher.address, target):
        assert sha_of(target) == sha_of(state)
    for receiver in first:
        receiver.close()


def test_the_same_revision_twice_is_an_error_that_says_so_and_changes_nothing(
    publisher: Publisher,
) -> None:
    publisher.publish(make_state(0), revision=5)
    with pytest.raises(RevisionExists, match="revision 5 cannot be published: the newest is 5"):
        publisher.publish(make_state(1), revision=5)
    with pytest.raises(RevisionExists):
        publisher.publish(make_state(1), revision=4)
    done = publisher.publish(make_state(1), revision=9)
    assert (done.revision, publisher.revision) == (9, 9)
    target = empty_state()
    with pulled(publisher.address, target, at_least=9):
        assert sha_of(target) == sha_of(make_state(1))


@pytest.mark.parametrize("failing", ["encode_delta", "make_manifest", "encode_anchor"])
def test_a_publish_that_failed_leaves_the_baseline_so_that_the_next_one_is_exact(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Publisher(anchor_every=1) as publisher:
        publisher.publish(make_state(0))
        target = empty_state()
        with pulled(publisher.address, target) as receiver:

            def no_memory(*_: object, **__: object) -> None:
                raise MemoryError

            with monkeypatch.context() as patched:
                patched.setattr(f"pccl.weights.publisher.{failing}", no_memory)
                with pytest.raises(MemoryError):
                    publisher.publish(make_state(1))
            assert publisher.revision == 1
            publisher.publish(make_state(2))
            done = receiver.pull(target, at_least=2, timeout_s=30)
            assert not done.anchor and sha_of(target) == sha_of(make_state(2))


@pytest.mark.parametrize("failing", ["advance", "Publisher._commit"])
def test_a_publish_cut_off_at_its_very_end_is_followed_by_an_anchor(
    failing: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(make_state(0))
    target = empty_state()
    with pulled(publisher.address, target) as receiver:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(f"pccl.weights.publisher.{failing}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                publisher.publish(make_state(1))
        done = publisher.publish(make_state(2))
        assert done.anchor_bytes > 0
        assert receiver.pull(target, at_least=done.revision, timeout_s=30).anchor
        assert sha_of(target) == sha_of(make_state(2))


def test_a_revision_that_never_comes_is_said_to_be_newer_than_the_newest(
    publisher: Publisher,
) -> None:
    publisher.publish(make_state(0))
    target = empty_state()
    with (
        pulled(publisher.address, target) as receiver,
        pytest.raises(pccl.DeadlineExceeded, match="the newest is revision 1"),
    ):
        receiver.pull(target, at_least=99, timeout_s=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("step"), "step is missing"),
        (lambda s: s.update(step=np.zeros(2, np.int64)), r"step is i64\[2\], expected i64\[\]"),
        (lambda s: s.update(table=s["table"][::2]), "table is not contiguous"),
    ],
)
def test_another_state_is_refused_by_its_first_difference_on_both_ends(
    publisher: Publisher, change: Any, words: str
) -> None:
    publisher.publish(make_state(0))
    other = make_state(0)
    change(other)
    with pytest.raises(pccl.UsageError, match=words):
        publisher.publish(other)
    with Receiver(publisher.address) as receiver, pytest.raises(pccl.UsageError, match=words):
        receiver.pull(other, timeout_s=30)
    assert publisher.publish(make_state(1)).revision == 2


def test_a_state_far_larger_than_the_tensors_is_refused_before_it_is_fetched(
    publisher: Publisher,
) -> None:
    publisher.publish({"w": np.zeros(70 << 20, np.uint8)})
    with Receiver(publisher.address) as receiver:
        with pytest.raises(pccl.UsageError, match="nothing was fetched"):
            receiver.pull({"w": np.zeros(1, np.uint8)}, timeout_s=30)
        assert publisher.sent_bytes == 0


def test_listening_where_others_can_reach_it_needs_a_word() -> None:
    with pytest.raises(pccl.UsageError, match="insecure=True"):
        Publisher("0.0.0.0:0")
    with pytest.raises(pccl.UsageError, match="insecure=True"):
        Receiver("127.0.0.1:1", listen="0.0.0.0:0")
    Publisher("0.0.0.0:0", insecure=True).close()


def test_a_taken_port_and_impossible_arguments_are_refused(publisher: Publisher) -> None:
    with pytest.raises(pccl.UsageError, match="cannot listen"):
        Publisher(publisher.address)
    with pytest.raises(pccl.UsageError):
        Publisher(fan_out=0)
    with pytest.raises(pccl.UsageError):
        publisher.publish({"w": [1, 2]})
    with pytest.raises(pccl.UsageError):
        publisher.publish({"w": np.zeros(3)}, revision=0)
    with Receiver(publisher.address) as receiver:
        with pytest.raises(pccl.UsageError):
            receiver.pull({}, on_mismatch="maybe")  # type: ignore[arg-type]
        frozen = np.zeros(3)
        frozen.flags.writeable = False
        with pytest.raises(pccl.UsageError, match="read-only"):
            receiver.pull({"w": frozen})


def test_without_a_publisher_a_pull_ends_at_its_deadline_and_says_whom_it_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with Receiver(address) as receiver:
        began_s = time.monotonic()
        with pytest.raises(pccl.DeadlineExceeded, match=address):
            receiver.pull({"w": np.zeros(3)}, timeout_s=0.5)
        assert time.monotonic() - began_s < 5


def test_after_close_both_ends_say_so_and_close_again_does_nothing(publisher: Publisher) -> None:
    receiver = Receiver(publisher.address)
    for end in (receiver, publisher, receiver, publisher):
        end.close()
    with pytest.raises(pccl.Closed):
        publisher.publish({"w": np.zeros(3)})
    with pytest.raises(pccl.Closed):
        receiver.pull({"w": np.zeros(3)})


def test_a_fork_says_that_the_publisher_is_its_parent_s(publisher: Publisher) -> None:
    publisher.publish(make_state(0))
    publisher._loop._process += 1  # as a child sees it; pytest itself is no good place to fork
    with pytest.raises(pccl.Forked):
        publisher.publish(make_state(1))
    publisher._loop._process -= 1


def test_closing_ends_a_pull_that_waits() -> None:
    with Publisher() as publisher, Receiver(publisher.address) as receiver:
        threading.Timer(0.3, receiver.close).start()
        with pytest.raises(pccl.Closed):
            receiver.pull({"w": np.zeros(3)}, timeout_s=30)


STRANGERS = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x00" * 64,
    b"\xff" * 5000,
    frame(codec.encode(Join(PROTOCOL + 1, bytes(16), "", 1))),
    frame(codec.encode(Fetch(PROTOCOL, bytes(16), 1, 0))),
    frame(codec.encode(Join(PROTOCOL, bytes(16), "", 1)))[:-3],
    frame(b"\x93\x0a"),
]


@pytest.mark.parametrize("said", STRANGERS, ids=range(len(STRANGERS)))
def test_a_stranger_gets_no_byte_of_a_weight_and_disturbs_nobody(
    publisher: Publisher, said: bytes
) -> None:
    state = make_state(0)
    publisher.publish(state)
    host, _, port = publisher.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
        target = empty_state()
        pulled(publisher.address, target).close()
        assert sha_of(target) == sha_of(state)


def test_many_silent_connections_do_not_keep_a_receiver_out(publisher: Publisher) -> None:
    publisher.publish(make_state(0))
    host, _, port = publisher.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(80)]
    target = empty_state()
    began_s = time.monotonic()
    pulled(publisher.address, target).close()
    assert time.monotonic() - began_s < FIRST_WORD_S
    assert sha_of(target) == sha_of(make_state(0))
    for connection in silent:
        connection.close()


def test_tensors_swapped_for_others_are_looked_at_anew(publisher: Publisher) -> None:
    publisher.publish(make_state(0))
    first, second = empty_state(), empty_state()
    with pulled(publisher.address, first) as receiver:
        done = receiver.pull(second, timeout_s=30)
        assert done.anchor and sha_of(second) == sha_of(first)
        assert receiver.pull(first, timeout_s=30).updates == 0


def test_many_revisions_while_receivers_pull_as_they_like_end_in_the_same_bits() -> None:
    dice = np.random.default_rng(1)
    state = {"w": dice.integers(0, 1 << 16, 300_000).astype(np.uint16)}
    revisions, wrong = 40, []
    shas: dict[int, str] = {}
    with Publisher(anchor_every=7, history_bytes_max=100_000) as publisher:
        receivers = [Receiver(publisher.address) for _ in range(4)]

        def follow(receiver: Receiver, pause_s: float) -> None:
            mine = {"w": np.zeros(300_000, np.uint16)}
            while (receiver.revision or 0) < revisions:
                done = receiver.pull(mine, timeout_s=30)
                if sha_of(mine) != shas[done.revision]:
                    wrong.append(done)
                time.sleep(pause_s)

        threads = [
            threading.Thread(target=follow, args=(receiver, 0.01 * (2 + 5 * n)), daemon=True)
            for n, receiver in enumerate(receivers)
        ]
        for revision in range(1, revisions + 1):
            state["w"][dice.integers(0, 300_000, 3000)] += 1
            shas[revision] = sha_of(state)
            publisher.publish(state)
            if revision == 1:
                for thread in threads:
                    thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(30)
        assert not wrong and not any(thread.is_alive() for thread in threads)
        for receiver in receivers:
            receiver.close()


def test_a_mismatch_is_found_also_where_the_update_does_not_write(publisher: Publisher) -> None:
    state = make_state(0)
    publisher.publish(state)
    target = empty_state()
    with pulled(publisher.address, target) as receiver:
        target["step"][...] = 99
        changed = make_state(0)
        changed["table"][0] ^= 1
        publisher.publish(changed)
        with pytest.raises(BaseMismatch):
            receiver.pull(target, at_least=2, timeout_s=30)
        assert int(target["step"]) == 99
