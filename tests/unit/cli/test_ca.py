"""`pccl ca` as a person or a script meets it; exit codes: 0 done, 1 failed, 2 asked for wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pccl.base.errors import UsageError
from pccl.cli.main import main
from pccl.membership.service_ca import open_ca
from pccl.transport.join_ticket import parse_ticket

PEER = bytes(range(16))


class Ca:
    """One folder, and what the commands say of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["ca", *arguments, "--dir", str(self.folder)])
        output, errors = self._capsys.readouterr()
        return code, output, errors

    def listed(self) -> dict[str, Any]:
        code, output, _ = self("list", "--json")
        assert code == 0
        document: dict[str, Any] = json.loads(output)
        return document


@pytest.fixture
def ca(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ca:
    made = Ca(tmp_path / "ca", capsys)
    code, output, errors = made("init", "--endpoint", "host-a:48148")
    assert (code, errors) == (0, "") and "made the CA of run" in output
    return made


def enrolled(ca: Ca, ticket: str, peer: bytes) -> None:
    """What a coordinator writes when a peer comes by a ticket."""
    folder = open_ca(ca.folder)
    try:
        folder.ledger.enrol(parse_ticket(ticket).token_id, peer, now=int(1e9))
    finally:
        folder.close()


def test_a_ca_is_made_once_and_its_key_is_for_its_owner_alone(ca: Ca) -> None:
    assert (ca.folder / "ca.key").stat().st_mode & 0o777 == 0o600
    key = (ca.folder / "ca.key").read_bytes()
    code, output, errors = ca("init")
    assert (code, output) == (2, "") and errors.startswith("error: ")
    assert (ca.folder / "ca.key").read_bytes() == key
    (ca.folder / "ca.key").chmod(0o644)
    code, output, errors = ca("ticket")
    assert (code, output) == (2, "") and "chmod 600" in errors


def test_a_ticket_is_one_line_that_says_how_to_join_and_the_list_never_shows_its_secret(
    ca: Ca,
) -> None:
    code, output, errors = ca("ticket", "--role", "receiver", "--uses", "8", "--expires", "2h")
    assert (code, errors, output.count("\n")) == (0, "", 1)
    ticket = parse_ticket(output.strip())
    assert [str(address) for address in ticket.addresses] == ["host-a:48148"]
    document = ca.listed()
    assert ticket.run_id.hex() == document["run_id"]
    (row,) = document["tickets"]
    assert (row["role"], row["uses"], row["state"]) == ("receiver", "0/8", "")
    assert row["ticket"] == ticket.token_id.hex()
    for output in (json.dumps(document), ca("list")[1]):
        assert ticket.secret.hex() not in output and ticket.text not in output


def test_a_ticket_without_an_endpoint_says_what_its_bearer_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = Ca(tmp_path / "ca", capsys)
    assert ca("init")[0] == 0
    code, output, errors = ca("ticket")
    assert code == 0 and parse_ticket(output.strip()).addresses == ()
    assert "--endpoint HOST:PORT" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("ticket", "--expires", "soon"),
        ("ticket", "--expires", "0h"),
        ("ticket", "--uses", "0"),
        ("ticket", "--role", "king"),
        ("ticket", "--endpoint", "nowhere"),
        ("init", "--life", "1s"),
        ("revoke", "zz"),
        ("revoke", "0123"),
    ],
)
def test_what_is_asked_for_wrongly_changes_nothing(ca: Ca, arguments: tuple[str, ...]) -> None:
    before = ca.listed()
    code, output, errors = ca(*arguments)
    assert (code, output) == (2, "") and errors
    assert ca.listed() == before


@pytest.mark.parametrize("command", ["ticket", "list", "revoke 00"])
def test_where_there_is_no_ca_it_is_said_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, output, errors = Ca(tmp_path / "none", capsys)(*command.split())
    assert (code, output) == (2, "") and "pccl ca init" in " ".join(errors.split())


def test_who_is_revoked_is_named_and_with_a_ticket_all_who_came_by_it(ca: Ca) -> None:
    ticket = ca("ticket", "--uses", "3")[1].strip()
    peers = [bytes([number]) * 16 for number in (1, 2, 3)]
    for peer in peers:
        enrolled(ca, ticket, peer)
    assert ca.listed()["tickets"][0]["uses"] == "3/3"
    code, output, _ = ca("revoke", peers[0].hex()[:8], "--reason", "its disk was stolen")
    assert code == 0 and peers[0].hex() in output
    denied = {row["peer"]: row["denied"] for row in ca.listed()["peers"]}
    assert "its disk was stolen" in denied[peers[0].hex()] and not denied[peers[1].hex()]
    assert ca("revoke", peers[1].hex()[:8])[0] == 0
    denied = {row["peer"]: row["denied"] for row in ca.listed()["peers"]}
    assert denied[peers[1].hex()] == "no reason given" and not denied[peers[2].hex()]
    code, output, _ = ca("revoke", parse_ticket(ticket).token_id.hex())
    assert code == 0 and "revoked the ticket" in output
    document = ca.listed()
    assert document["tickets"][0]["state"] == "revoked"
    assert all(row["denied"] for row in document["peers"])


def test_a_ticket_is_revoked_by_its_text_too_which_no_message_repeats(ca: Ca) -> None:
    ticket = ca("ticket")[1].strip()
    code, output, errors = ca("revoke", ticket[:-2])
    assert (code, output) == (2, "") and "no join ticket" in errors and ticket[:40] not in errors
    assert ca.listed()["tickets"][0]["state"] == ""
    assert ca("revoke", ticket)[0] == 0
    assert ca.listed()["tickets"][0]["state"] == "revoked"


def test_the_list_has_whole_lines(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    enrolled(ca, ca("ticket")[1].strip(), PEER)
    assert [line.split()[0] for line in ca("list")[1].splitlines()][3:] == ["peer", PEER.hex()[:8]]


def test_a_key_with_any_bit_flipped_is_told_as_a_damaged_folder(ca: Ca) -> None:
    file = ca.folder / "ca.key"
    good, refused = file.read_bytes(), 0
    for at in range(len(good)):
        for bit in (1, 4):
            damaged = bytearray(good)
            damaged[at] ^= bit
            file.write_bytes(damaged)
            try:
                open_ca(ca.folder).close()
            except UsageError as error:
                assert "damaged" in str(error) and len(str(error)) < 400
                refused += 1
    assert refused > len(good)
