"""What torchft's calls of `configure` mean, in the forms of its versions."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pccl.pytorch.quorum import StoreAddress, parse_store_address, quorum_of

AT = "here:1234/torchft/7/0"


@pytest.mark.parametrize(
    ("args", "named", "name"),
    [
        ((AT, 1, 3), {}, "torchft quorum"),
        ((AT, "b", 1, 3), {}, "torchft quorum of replica b"),
        ((AT, "b", 1, 3, 7, 0, 2, [0, 2, 4]), {}, "torchft quorum 7 of replica b"),
        ((AT,), {"rank": 1, "world_size": 3}, "torchft quorum"),
        ((AT, "b"), {"rank": 1, "world_size": 3, "quorum_id": 7}, "torchft quorum 7 of replica b"),
    ],
)
def test_every_form_of_configure_says_where_and_which_rank(
    args: tuple[Any, ...], named: dict[str, Any], name: str
) -> None:
    asked = quorum_of(args, named)
    assert asked.store == StoreAddress("here", 1234, "torchft/7/0")
    assert (asked.rank, asked.world_size, asked.name) == (1, 3, name)


@pytest.mark.parametrize(
    ("args", "named", "said"),
    [
        ((AT,), {}, "missing: rank, world_size"),
        ((AT, "b", 1), {}, "missing: world_size"),
        ((AT, 1, 3, 7), {}, "takes 3 arguments"),
        ((AT, "b", 1, 3), {"rank": 1}, "twice: rank"),
        ((AT, "b", 1, 3), {"device": 1}, "unknown: device"),
    ],
)
def test_a_call_of_no_known_form_is_refused_and_told_why(
    args: tuple[Any, ...], named: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        quorum_of(args, named)


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 3 in a world of 3"):
        quorum_of((AT, "b", 3, 3), {})


@pytest.mark.parametrize(
    ("text", "host", "prefix"),
    [
        ("localhost:29500/a/b", "localhost", "a/b"),
        ("10.0.0.1:29500", "10.0.0.1", ""),
        ("::1:29500/a", "::1", "a"),
        ("[fd00::1]:29500/a", "fd00::1", "a"),
    ],
)
def test_the_address_of_a_store_may_be_one_of_ipv6(text: str, host: str, prefix: str) -> None:
    assert parse_store_address(text) == StoreAddress(host, 29500, prefix)


@pytest.mark.parametrize("text", ["", "host", "host/a", ":1/a", "host:x/a", "host:0/a", "h:65536"])
def test_what_is_no_address_of_a_store_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port/prefix"):
        parse_store_address(text)


def test_without_torchft_the_import_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['torchft'] = None\n"
        "try: import pccl.pytorch.torchft\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "pip install 'pccl[torchft]'" in done.stdout, done
