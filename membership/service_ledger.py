"""The ledger of a secured run: tickets, who enrolled by them, and who is denied.  One SQLite file.

It lies in the CA's folder and not in the coordinator's journal: `pccl ca` writes to it while a
coordinator runs, it must survive a journal that is lost or adopted, and its rows are about weeks,
not about views.  Both programs hold it open; SQLite's locks order them, and `version` tells a
coordinator that another process has written.

Invariants: a use is durable before `enrol` returns, so no crash gives one back; a key that has
enrolled by a ticket enrols again by it without another use; who is denied stays so.

Threads: any, one call at a time (a lock).  Errors: LedgerError, after which nothing was changed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pccl.base.errors import PcclError, RemoteError
from pccl.base.private_files import make_private_file
from pccl.membership import ledger_rows as rows
from pccl.membership.enrolment import Token
from pccl.transport.join_ticket import SECRET_BYTES, TOKEN_ID_BYTES

WAIT_S: Final = 5.0  # for the other program's transaction
REASON_CHARACTERS_MAX: Final = 256

_SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, run_id BLOB NOT NULL,
    life_s REAL NOT NULL, endpoints TEXT NOT NULL
);
CREATE TABLE tokens (
    token_id BLOB PRIMARY KEY, secret BLOB NOT NULL, role TEXT NOT NULL, uses_max INTEGER NOT NULL,
    made INTEGER NOT NULL, expires INTEGER NOT NULL, revoked INTEGER, reason TEXT
);
CREATE TABLE enrolments (
    token_id BLOB NOT NULL REFERENCES tokens, peer_id BLOB NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, PRIMARY KEY (token_id, peer_id)
);
CREATE TABLE denied (peer_id BLOB PRIMARY KEY, at INTEGER NOT NULL, reason TEXT NOT NULL);
"""


class LedgerError(PcclError):
    """The ledger cannot be opened, read or written."""


class Refusal(PcclError):
    """A ticket or a peer is not let in; `code` as in EnrolRefused."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Ledger:
    """Opens the file; `Ledger.create` makes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        if not path.is_file():
            raise LedgerError(f"{path} does not exist; is this a folder of `pccl ca init`?")
        try:
            self._db = sqlite3.connect(
                path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            with self._guarded():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                row = self._db.execute("SELECT format, run_id, life_s FROM run").fetchone()
                self.run_id, self.life_s = rows.run_of(row)
        except LedgerError:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: Path, run_id: bytes, life_s: float, endpoints: str) -> Ledger:
        """Makes the file, for its owner alone.  Raises LedgerError if there is one."""
        try:
            os.close(make_private_file(path))
            db = sqlite3.connect(path, isolation_level=None)
            try:
                db.executescript(f"BEGIN EXCLUSIVE;{_SCHEMA}")
                row = (rows.FORMAT, run_id, life_s, endpoints)
                db.execute("INSERT INTO run VALUES (1, ?, ?, ?, ?)", row)
                db.execute("COMMIT")
            finally:
                db.close()
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{path} cannot be made: {error}") from error
        return cls(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def version(self) -> int:
        """Returns a number that differs once another process has written."""
        with self._guarded():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where coordinators listen, as far as anybody has said; for new tickets."""
        with self._guarded():
            (text,) = self._db.execute("SELECT endpoints FROM run").fetchone()
            return tuple(part for part in rows.text_of(text).split(",") if part)

    def set_endpoints(self, endpoints: tuple[str, ...]) -> None:
        with self._writing():
            self._db.execute("UPDATE run SET endpoints = ?", (",".join(endpoints),))

    # ------------------------------------------------------------------ tickets

    def add_token(self, token: Token, uses_max: int, made: int, expires: int) -> None:
        assert len(token.token_id) == TOKEN_ID_BYTES and len(token.secret) == SECRET_BYTES
        row = (token.token_id, token.secret, token.role.value, uses_max, made, expires)
        with self._writing():
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)", row)

    def token(self, token_id: bytes) -> Token | None:
        with self._guarded():
            row = self._db.execute(
                "SELECT secret, role FROM tokens WHERE token_id = ?", (token_id,)
            ).fetchone()
            return None if row is None else rows.token_of(token_id, row)

    def check_token(self, token_id: bytes, now: int) -> None:
        """Raises Refusal if a ticket is revoked or has expired; changes nothing."""
        with self._guarded():
            self._living(token_id, now)

    def enrol(self, token_id: bytes, peer_id: bytes, now: int) -> bool:
        """Counts a use of a ticket, durably, unless this key has used it before; says whether it
        was counted.

        Raises:
            Refusal: the ticket is revoked, expired or used up, or the key is denied.
        """
        with self._writing():
            uses_max = self._living(token_id, now)
            if self._denied(peer_id):
                raise Refusal("revoked", "this key was revoked; join with a new identity")
            again = self._db.execute(
                "UPDATE enrolments SET last = ? WHERE token_id = ? AND peer_id = ?",
                (now, token_id, peer_id),
            )
            if again.rowcount:
                return False
            if self._uses(token_id) >= uses_max:
                times = "once" if uses_max == 1 else f"{uses_max} times"
                text = f"it was used {times}, as often as it may be; ask for another"
                raise Refusal("used", text)
            self._db.execute(
                "INSERT INTO enrolments VALUES (?, ?, ?, ?)", (token_id, peer_id, now, now)
            )
            return True

    def _living(self, token_id: bytes, now: int) -> int:
        row = self._db.execute(
            "SELECT uses_max, expires, revoked FROM tokens WHERE token_id = ?", (token_id,)
        ).fetchone()
        if row is None:
            raise Refusal("ticket", "no such ticket in this run")
        uses_max, expires, revoked = rows.terms_of(row)
        if revoked:
            raise Refusal("revoked", "it was revoked; ask who runs `pccl ca` for another")
        if now >= expires:
            raise Refusal("expired", "it has expired; ask who runs `pccl ca` for another")
        return uses_max

    def _uses(self, token_id: bytes) -> int:
        (count,) = self._db.execute(
            "SELECT count(*) FROM enrolments WHERE token_id = ?", (token_id,)
        ).fetchone()
        return int(count)

    # ------------------------------------------------------------------ renewal and denial

    def renew(self, peer_id: bytes, now: int) -> None:
        """Notes a renewal.  Raises Refusal if the key is denied or never enrolled here."""
        with self._writing():
            if self._denied(peer_id):
                raise Refusal("revoked", "this key was revoked; join with a new identity")
            known = self._db.execute(
                "UPDATE enrolments SET last = ? WHERE peer_id = ?", (now, peer_id)
            )
            if not known.rowcount:
                raise Refusal("key", "this key has not enrolled by a ticket of this run")

    def denied(self) -> frozenset[bytes]:
        """Returns the ids of all peers that are denied."""
        with self._guarded():
            return frozenset(rows.peer_id_of(one) for (one,) in self._db.execute(_ALL_DENIED))

    def _denied(self, peer_id: bytes) -> bool:
        row = self._db.execute(f"{_ALL_DENIED} INTERSECT SELECT ?", (peer_id,)).fetchone()
        return row is not None

    def revoke(self, prefix_hex: str, now: int, reason: str) -> tuple[str, tuple[bytes, ...]]:
        """Denies a peer, or a ticket and all who enrolled by it; durable when it returns.

        Args:
            prefix_hex: the beginning of a peer's or a ticket's id that fits one of them only; a
                peer's whole id is denied also if it never enrolled.

        Returns:
            "peer" or "ticket", and the peers that are denied by it.

        Raises:
            LedgerError: none, or several, have such an id.
        """
        reason = reason[:REASON_CHARACTERS_MAX]
        with self._writing():
            peers = self._matching(
                "SELECT DISTINCT peer_id FROM enrolments", rows.peer_id_of, prefix_hex
            )
            tokens = self._matching("SELECT token_id FROM tokens", rows.token_id_of, prefix_hex)
            if not peers and not tokens and len(prefix_hex) == 32:
                peers = [bytes.fromhex(prefix_hex)]
            if len(peers) + len(tokens) != 1:
                found = len(peers) + len(tokens)
                raise LedgerError(
                    f"{found or 'no'} peers or tickets have an id that begins with {prefix_hex!r}; "
                    "`pccl ca list` shows them"
                )
            if peers:
                row = (peers[0], now, reason)
                self._db.execute("INSERT OR IGNORE INTO denied VALUES (?, ?, ?)", row)
                return "peer", tuple(peers)
            self._db.execute(
                "UPDATE tokens SET revoked = ?, reason = ? WHERE token_id = ? AND revoked IS NULL",
                (now, reason, tokens[0]),
            )
            by_it = self._db.execute(
                "SELECT peer_id FROM enrolments WHERE token_id = ?", (tokens[0],)
            )
            return "ticket", tuple(rows.peer_id_of(one) for (one,) in by_it)

    def _matching(
        self, query: str, id_of: Callable[[object], bytes], prefix_hex: str
    ) -> list[bytes]:
        ids = [id_of(one) for (one,) in self._db.execute(query)]
        return [one for one in ids if prefix_hex and one.hex().startswith(prefix_hex.lower())]

    # ------------------------------------------------------------------ for people

    def tokens(self) -> list[rows.TokenRow]:
        with self._guarded():
            return [rows.token_row_of(row) for row in self._db.execute(_TOKENS)]

    def peers(self) -> list[rows.PeerRow]:
        with self._guarded():
            return [rows.peer_row_of(row) for row in self._db.execute(_PEERS)]

    # ------------------------------------------------------------------ transactions

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, ValueError, RemoteError) as error:
                raise self._explain(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guarded():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _explain(self, error: Exception) -> LedgerError:
        return LedgerError(f"ledger {self._path}: {error}")


_ALL_DENIED: Final = """
SELECT peer_id FROM denied
UNION
SELECT peer_id FROM enrolments JOIN tokens USING (token_id) WHERE revoked IS NOT NULL
"""

_TOKENS: Final = """
SELECT token_id, role, (SELECT count(*) FROM enrolments e WHERE e.token_id = t.token_id), uses_max,
    made, expires, revoked
FROM tokens t ORDER BY made
"""

_PEERS: Final = """
SELECT e.peer_id, e.token_id, t.role, e.first, e.last,
    coalesce(CASE d.reason WHEN '' THEN 'no reason given' ELSE d.reason END,
        CASE WHEN t.revoked IS NOT NULL THEN 'its ticket was revoked' END)
FROM enrolments e JOIN tokens t USING (token_id) LEFT JOIN denied d ON d.peer_id = e.peer_id
ORDER BY e.first
"""
