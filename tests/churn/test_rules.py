"""What nft and the link emulator are told, from what is wrong with the links."""

from __future__ import annotations

from tests.churn.rules import LinkFault, LinkQuality, both_ways, emulator_commands, nft_rules

ADDRESSES = {"a": ("10.0.0.1",), "b": ("10.0.0.2", "fd00::2"), "c": ("10.0.0.3",)}


def test_a_cut_is_filtered_where_it_arrives_and_nowhere_else() -> None:
    cut = [LinkFault("cut", "a", "b")]
    assert "ip saddr 10.0.0.1 drop" in nft_rules("b", cut, ADDRESSES)
    assert "saddr" not in nft_rules("a", cut, ADDRESSES)
    assert "saddr" not in nft_rules("c", cut, ADDRESSES)


def test_every_address_of_a_source_is_filtered() -> None:
    rules = nft_rules("a", [LinkFault("reset", "b", "a")], ADDRESSES)
    assert "ip saddr 10.0.0.2 meta l4proto tcp reject with tcp reset" in rules
    assert "ip6 saddr fd00::2 meta l4proto tcp reject with tcp reset" in rules


def test_loss_is_told_in_thousandths() -> None:
    rules = nft_rules("a", [LinkFault("loss", "c", "a", 0.05)], ADDRESSES)
    assert "numgen random mod 1000 < 50 drop" in rules


def test_rules_replace_those_of_before_also_when_nothing_is_wrong() -> None:
    for faults in ([], [LinkFault("cut", "a", "b")]):
        lines = nft_rules("b", faults, ADDRESSES).splitlines()
        assert lines[:2] == ["table inet pccl_churn {}", "delete table inet pccl_churn"]


def test_the_emulator_is_told_every_link_with_all_that_is_in_force_on_it() -> None:
    faults = [*both_ways("delay", "a", "b", 20.0), LinkFault("cut", "b", "a")]
    faults += [LinkFault("jitter", "a", "b", 3.0), LinkFault("rate", "a", "b", 8.0)]
    quality = LinkQuality(delay_ms=5.0, loss=0.01)
    commands = emulator_commands(["a", "b", "c"], faults, quality)
    assert len(commands) == 6
    assert commands[0, 1] == "0 1 delay=25 jitter=3 loss=0.01 rate=8 queue=1024 cut=0"
    assert commands[1, 0] == "1 0 delay=25 jitter=0 loss=0.01 rate=0 queue=1024 cut=1"
    assert commands[0, 2] == "0 2 delay=5 jitter=0 loss=0.01 rate=0 queue=1024 cut=0"
