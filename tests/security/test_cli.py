"""The commands of a secured run together: init, coordinator, ticket, status, revoke."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pccl
from pccl.cli.main import main
from tests.integration.coordinator_processes import CoordinatorProcess
from tests.security.laboratory import eventually, native_has_tls

pytestmark = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")


def test_a_run_from_its_first_command_to_a_revocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    folder = ["--dir", str(tmp_path / "ca")]
    assert main(["ca", "init", *folder]) == 0
    process = CoordinatorProcess("--ca", str(tmp_path / "ca"), "--listen", "127.0.0.1:0")
    try:
        line = process.line("coordinator listening on")
        address = line.split("listening on ")[1].split(";")[0].split()[0]
        assert "ticket=..." in line
        capsys.readouterr()
        assert main(["ca", "ticket", *folder, "--endpoint", address]) == 0
        ticket = capsys.readouterr().out.strip()

        assert main(["status", address, "--timeout", "5"]) != 0, "without a ticket"
        assert capsys.readouterr().out == ""
        monkeypatch.setenv("PCCL_TICKET", ticket)
        comm = pccl.connect(timeout_s=60)
        try:
            comm.all_reduce(np.ones(4, np.float32))
            monkeypatch.delenv("PCCL_TICKET")
            assert main(["status", "--ticket", ticket, "--json", "--timeout", "20"]) == 0
            document = json.loads(capsys.readouterr().out)
            assert document["tls"]["control"].startswith("OpenSSL ")
            assert document["tls"]["native"].startswith("OpenSSL ")
            peer = comm.peer_id.hex()
            assert [row["peer_id"] for row in document["members"]] == [peer]
            assert document["members"][0]["tls"].startswith("TLS 1.3, OpenSSL ")

            assert main(["ca", "revoke", *folder, peer]) == 0
            eventually(lambda: _is_out(comm))
        finally:
            comm.close()
        assert main(["ca", "list", *folder, "--json"]) == 0
        listed = json.loads(capsys.readouterr().out.split("\n", 1)[1])
        assert listed["tickets"][0]["uses"] == "1/1", "asking for the status used nothing up"
        assert listed["peers"][0]["peer"] == peer and listed["peers"][0]["denied"]
        assert main(["status", "--ticket", ticket[:-3], "--timeout", "5"]) == 2, "a damaged ticket"
    finally:
        process.discard()


def _is_out(comm: pccl.Communicator) -> bool:
    try:
        comm.all_reduce(np.ones(4, np.float32), async_op=False)
    except pccl.PcclError:
        return True
    return False


def test_a_coordinator_without_a_ca_does_not_begin_in_the_open(tmp_path: Path) -> None:
    for arguments in (("--listen", "0.0.0.0:0"), ("--ca", str(tmp_path / "none"))):
        process = CoordinatorProcess(*arguments)
        try:
            code, errors = process.end()
            assert code == 2 and errors.startswith("error: "), errors
        finally:
            process.discard() if process.process.poll() is None else None
