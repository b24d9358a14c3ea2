"""Addresses as people write them."""

from __future__ import annotations

import pytest

from pccl.base.errors import UsageError
from pccl.transport.address import (
    Address,
    is_loopback,
    is_wildcard,
    parse_address,
    parse_addresses,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:48148", "127.0.0.1", 48148),
        ("[::1]:1", "::1", 1),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("host-a.example.org:65535", "host-a.example.org", 65535),
        ("localhost:80", "localhost", 80),
        (" node_7:80 ", "node_7", 80),
    ],
)
def test_what_is_parsed_prints_as_it_was_written(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text.strip()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no port"),
        ("host", "no port"),
        (":80", "no port"),
        ("host:", "not a port"),
        ("host:http", "not a port"),
        ("host:-1", "not a port"),
        ("host:٣", "not a port"),
        ("host:0", "port 0 is not within"),
        ("host:65536", "port 65536 is not within"),
        ("::1:80", "needs brackets"),
        ("[::1:80", "needs brackets"),
        ("[host]:80", "no IPv6 address between"),
        ("300.1.1.1:80", "neither a name nor an address"),
        ("ho st:80", "neither a name nor an address"),
        ("-host:80", "neither a name nor an address"),
        ("http://host:80", "needs brackets"),
    ],
)
def test_a_mistyped_address_is_a_usage_error_that_says_why(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_address(text)


def test_a_listener_may_ask_for_any_port() -> None:
    assert parse_address("127.0.0.1:0", port_min=0).port == 0


def test_a_list_keeps_its_order_and_drops_repetitions() -> None:
    addresses = parse_addresses("b:2, a:1,b:2,,[::1]:3")
    assert [str(address) for address in addresses] == ["b:2", "a:1", "[::1]:3"]


@pytest.mark.parametrize("text", ["", " , ", ",".join(f"h{i}:1" for i in range(17)), "a:1,b"])
def test_an_empty_endless_or_half_wrong_list_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_addresses(text)


def test_only_addresses_of_this_machine_alone_are_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "127.0.0.1", "a")] == [
        *(True, True),
        *(False, False),
    ]
