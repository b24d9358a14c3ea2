"""Weight sync between real processes that are killed and stopped in the middle of it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.peer_processes import PeerProcess
from tests.integration.slow_link import SlowLink
from tests.integration.weight_states import make_state, sha_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/weight_sync.py"
FILE = Path(__file__).with_name("weight_peer.py")
ANCHOR_BYTES = 12_000_000
SLOW = 8e6  # bytes a second: an anchor to two receivers takes three


class World:
    """A publisher and its receivers, each a process."""

    def __init__(self) -> None:
        self.all: list[PeerProcess] = []

    def publisher(self, address: str = "127.0.0.1:0") -> tuple[PeerProcess, str]:
        process = PeerProcess(address, "publisher", 0, 1, FILE)
        self.all.append(process)
        return process, process.fact_with("address")["address"]

    def receivers(self, address: str, count: int) -> list[PeerProcess]:
        started = [PeerProcess(address, "receiver", n, count, FILE) for n in range(count)]
        self.all += started
        for process in started:
            process.fact_with("started")
        return started


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for process in made.all:
        process.discard()


def publish(publisher: PeerProcess, number: int) -> dict[str, int]:
    publisher.say(f"publish {number}")
    return publisher.fact_with("published")


def pull(receivers: list[PeerProcess], at_least: int, on_mismatch: str = "raise") -> None:
    for receiver in receivers:
        receiver.say(f"pull {at_least} 40 {on_mismatch}")


def all_hold(receivers: list[PeerProcess], number: int) -> list[dict[str, int]]:
    facts = [receiver.fact_with("pulled") for receiver in receivers]
    assert {fact["sha"] for fact in facts} == {sha_of(make_state(number))}
    return facts


def sent_by(publisher: PeerProcess) -> int:
    publisher.say("status")
    return int(publisher.fact_with("sent")["sent"])


def one_that_relays(receivers: list[PeerProcess]) -> PeerProcess:
    """Waits until one has given bytes away, and has not got all of them itself yet."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        for receiver in receivers:
            fact = receiver.fact_with("given")
            if fact["given"] > 500_000:
                assert fact["received"] < ANCHOR_BYTES, "the transfer was over too soon"
                return receiver
    raise AssertionError("nobody relays")


def test_six_receivers_hold_every_bit_and_the_trainer_has_sent_it_twice(world: World) -> None:
    publisher, address = world.publisher()
    receivers = world.receivers(address, 6)
    first = publish(publisher, 0)
    pull(receivers, 1)
    assert all(fact["anchor"] for fact in all_hold(receivers, 0))
    assert sent_by(publisher) <= 2.5 * first["anchor"]
    for number in range(1, 4):
        before = sent_by(publisher)
        done = publish(publisher, number)
        pull(receivers, done["published"])
        facts = all_hold(receivers, number)
        assert not any(fact["anchor"] for fact in facts)
        assert done["delta"] < ANCHOR_BYTES / 60
        assert sent_by(publisher) - before <= 2.5 * done["delta"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_when_a_relaying_receiver_dies_or_stops_the_others_go_on_where_they_were(
    world: World, number: signal.Signals
) -> None:
    publisher, direct = world.publisher()
    publish(publisher, 0)
    with SlowLink(direct, SLOW) as link:
        receivers = world.receivers(link.address, 6)
        for receiver in receivers:
            receiver.say("watch")
        pull(receivers, 1)
        lost = one_that_relays(receivers)
        lost.send(number)
        began_s = time.monotonic()
        left = [receiver for receiver in receivers if receiver is not lost]
        facts = all_hold(left, 0)
        assert time.monotonic() - began_s < 30
        # Nobody began anew: besides one chunk each, every byte came once.
        assert all(fact["received_in_all"] < ANCHOR_BYTES + 4096 for fact in facts)
        assert sent_by(publisher) < 4 * ANCHOR_BYTES
        if number == signal.SIGSTOP:
            lost.send(signal.SIGCONT)
            all_hold([lost], 0)
        publish(publisher, 1)
        pull(left, 2)
        all_hold(left, 1)


def test_a_killed_trainer_is_followed_by_another_whose_anchor_brings_everybody_back(
    world: World,
) -> None:
    publisher, address = world.publisher()
    receivers = world.receivers(address, 3)
    publish(publisher, 0)
    publish(publisher, 1)
    pull(receivers, 2)
    all_hold(receivers, 1)
    publisher.send(signal.SIGKILL)
    publisher.end()
    again, _ = world.publisher(address)
    publish(again, 7)
    publish(again, 8)
    for receiver in receivers:
        # Until it has noticed, it holds the newest that it knows of; then it says what happened.
        until_s = time.monotonic() + 20
        while time.monotonic() < until_s:
            receiver.say("pull 1 40 raise")
            fact = receiver.next_fact()
            if "failed" in fact:
                break
        assert fact["failed"] == "BaseMismatch" and fact["unchanged"]
        assert "another publisher" in fact["text"]
    pull(receivers, 1, "anchor")
    assert all(fact["anchor"] for fact in all_hold(receivers, 8))
    publish(again, 9)
    pull(receivers, 3)
    assert not any(fact["anchor"] for fact in all_hold(receivers, 9))


def test_a_trainer_that_went_on_from_the_state_it_had_published_needs_no_anchor(
    world: World,
) -> None:
    publisher, address = world.publisher()
    receivers = world.receivers(address, 2)
    publish(publisher, 3)
    pull(receivers, 1)
    all_hold(receivers, 3)
    publisher.send(signal.SIGKILL)
    publisher.end()
    again, _ = world.publisher(address)
    publish(again, 3)
    publish(again, 4)
    pull(receivers, 2)
    assert not any(fact["anchor"] for fact in all_hold(receivers, 4))


def test_a_trainer_killed_in_the_middle_of_an_anchor_leaves_every_tensor_as_it_was(
    world: World,
) -> None:
    publisher, direct = world.publisher()
    publish(publisher, 0)
    with SlowLink(direct, SLOW) as link:
        receivers = world.receivers(link.address, 2)
        for receiver in receivers:
            receiver.say("watch")
            receiver.say("pull 1 6 raise")
        assert receivers[0].fact_with("received") is not None
        while receivers[0].fact_with("received")["received"] < 1_000_000:
            pass
        publisher.send(signal.SIGKILL)
        for receiver in receivers:
            fact = receiver.fact_with("failed")
            assert fact["failed"] == "DeadlineExceeded" and fact["unchanged"]
            assert "publisher" in fact["text"]


def test_a_trainer_that_was_stopped_for_a_while_goes_on_where_it_was(world: World) -> None:
    publisher, direct = world.publisher()
    publish(publisher, 0)
    with SlowLink(direct, SLOW) as link:
        receivers = world.receivers(link.address, 3)
        for receiver in receivers:
            receiver.say("watch")
        pull(receivers, 1)
        one_that_relays(receivers)
        publisher.send(signal.SIGSTOP)
        time.sleep(6.5)  # longer than any lease
        publisher.send(signal.SIGCONT)
        facts = all_hold(receivers, 0)
        assert all(fact["received_in_all"] < ANCHOR_BYTES + 4096 for fact in facts)


def test_a_receiver_that_was_changed_says_so_and_is_mended_by_an_anchor(world: World) -> None:
    publisher, address = world.publisher()
    (receiver,) = world.receivers(address, 1)
    publish(publisher, 0)
    pull([receiver], 1)
    all_hold([receiver], 0)
    receiver.say("spoil")
    receiver.fact_with("spoilt")
    publish(publisher, 1)
    pull([receiver], 2)
    fact = receiver.next_fact()
    assert (fact["failed"], fact["unchanged"]) == ("BaseMismatch", True)
    pull([receiver], 2, "anchor")
    (fact,) = all_hold([receiver], 1)
    assert fact["anchor"]


def test_a_late_joiner_gets_an_anchor_and_what_came_after_it(world: World) -> None:
    publisher, address = world.publisher()
    early = world.receivers(address, 2)
    for number in range(8):
        publish(publisher, number)
    pull(early, 8)
    all_hold(early, 7)
    late = world.receivers(address, 1)
    pull(late, 8)
    (fact,) = all_hold(late, 7)
    assert fact["anchor"] and fact["updates"] == 3


def test_the_example_ends_with_the_trainer_s_bits_on_all_workers() -> None:
    command = [sys.executable, str(EXAMPLE), "--together", "3", "--revisions", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    digests = re.findall(r"revision 4, digest (\w{12})", done.stdout)
    assert len(digests) == 4 and len(set(digests)) == 1, done.stdout


def test_receivers_that_die_and_come_all_the_time_hold_the_right_bits_whenever_they_pull(
    world: World,
) -> None:
    dice = random.Random(4)
    publisher, direct = world.publisher()
    publish(publisher, 0)
    with SlowLink(direct, 4 * SLOW) as link:
        living = world.receivers(link.address, 5)
        for number in range(1, 6):
            pull(living, number)
            time.sleep(dice.uniform(0.05, 0.4))
            for lost in dice.sample(living, 2):
                lost.send(dice.choice([signal.SIGKILL, signal.SIGTERM]))
                living.remove(lost)
            all_hold(living, number - 1)
            living += world.receivers(link.address, 2)
            publish(publisher, number)
        pull(living, 6)
        all_hold(living, 5)
