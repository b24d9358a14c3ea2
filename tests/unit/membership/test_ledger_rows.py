"""A ledger that opens but was damaged: its rows are checked before anything is made of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pccl.base.errors import RemoteError
from pccl.membership import ledger_rows as rows
from pccl.membership.enrolment import Token
from pccl.membership.service_ledger import Ledger, LedgerError
from pccl.transport.identity import Role

TOKEN = Token(b"8 bytes.", bytes(range(32)), Role.TRAINER)
PEER = b"p" * 16


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    made = Ledger.create(path, b"r" * 16, 3600.0, "10.0.0.1:1")
    made.add_token(TOKEN, 3, 1, 1 << 31)
    assert made.enrol(TOKEN.token_id, PEER, 2)
    assert [(t.uses, t.uses_max, t.role) for t in made.tokens()] == [(1, 3, Role.TRAINER)]
    assert [(p.peer_id, p.denied) for p in made.peers()] == [(PEER, "")]
    assert made.token(TOKEN.token_id) == TOKEN
    made.close()
    return path


def change(path: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement, values)
    db.close()


@pytest.mark.parametrize("run_id", [10**12, "r" * 16, b"r" * 15])
def test_a_run_id_that_is_none_is_never_taken_for_one(ledger: Path, run_id: Any) -> None:
    change(ledger, "UPDATE run SET run_id = ?", run_id)
    with pytest.raises(LedgerError, match="where 16 bytes should be"):
        Ledger(ledger)


@pytest.mark.parametrize("life_s", ["long", -1.0, 0.0, 1e300])
def test_certificates_live_as_long_as_they_may(ledger: Path, life_s: Any) -> None:
    change(ledger, "UPDATE run SET life_s = ?", life_s)
    with pytest.raises(LedgerError, match="cannot live"):
        Ledger(ledger)


@pytest.mark.parametrize(
    ("column", "value"), [("role", "owner"), ("secret", 10**12), ("secret", b"short")]
)
def test_a_ticket_that_is_damaged_lets_nobody_in(ledger: Path, column: str, value: Any) -> None:
    change(ledger, f"UPDATE tokens SET {column} = ?", value)
    opened = Ledger(ledger)
    with pytest.raises(LedgerError):
        opened.token(TOKEN.token_id)
    opened.close()


def test_terms_that_are_no_numbers_let_nobody_in(ledger: Path) -> None:
    change(ledger, "UPDATE tokens SET uses_max = ?", b"many")
    opened = Ledger(ledger)
    with pytest.raises(LedgerError, match="where a number should be"):
        opened.enrol(TOKEN.token_id, b"q" * 16, 3)
    with pytest.raises(LedgerError, match="where a number should be"):
        opened.tokens()
    opened.close()


def test_another_version_is_named() -> None:
    with pytest.raises(RemoteError, match=r"another version of pccl \(2\)"):
        rows.run_of((2, bytes(16), 3600.0))
    with pytest.raises(RemoteError, match="is empty"):
        rows.run_of(None)
