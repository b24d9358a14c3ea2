"""What people read of a run: who waits for whom, and which links are not as they should be."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pccl.base.errors import RemoteError
from pccl.cli.main import main
from pccl.cli.status import show
from pccl.membership.messages import CarriedBy, StatusReply, Underflow
from pccl.membership.service_status import document_of
from pccl.transport.native_frames import Waiting, WaitKind, WaitOn
from tests.unit.membership.hub import Hub


def shown(hub: Hub) -> str:
    text = io.StringIO()
    show(hub.status(), Console(file=text, width=120))
    return text.getvalue()


def test_a_run_in_trouble_says_who_waits_for_whom_and_what_is_led_around() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    b.status = {"down": (c.peer_id,)}
    c.status = {"down": (b.peer_id,)}
    waits = (WaitOn(b.peer_id, WaitKind.DATA), WaitOn(c.peer_id, WaitKind.DATA))
    a.status = {"step": 7, "waiting": Waiting.PEERS, "waits": waits, "rtt_us": 1500}
    hub.pass_time(3.0, beating=everybody)
    lines = shown(hub)
    assert "profile lan" in lines and "generation 1" in lines
    assert "link 02020202.2 - 03030303.3: down through 01010101.1" in lines
    assert "01010101.1 waits in step 7 for the data of 02020202.2, 03030303.3, still for" in lines


def test_a_healthy_run_has_no_such_lines() -> None:
    hub = Hub()
    a, b = hub.members(2)
    waits = (WaitOn(b.peer_id, WaitKind.POST),)
    a.status = {"step": 7, "waiting": Waiting.PEERS, "waits": waits}
    hub.pass_time(1.0, beating=[a, b])
    assert hub.status()["waits"], "as every step does for a moment"
    assert "link " not in shown(hub) and "waits in step" not in shown(hub)


def test_a_coordinator_on_an_old_copy_of_its_journal_says_so_and_what_to_do() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    assert "outdated" not in shown(hub)
    hub.start()
    member.hello(run_id=hub.machine.run_id, generation=9)
    assert "outdated: it decides nothing" in shown(hub)
    assert "pccl coordinator adopt" in shown(hub)


def test_names_that_peers_chose_cannot_make_the_document_too_long() -> None:
    hub = Hub()
    for _ in range(250):
        peer = hub.learner(hostname="\u2603" * 255)
        assert peer.incarnation
    assert len(json.dumps(hub.status())) < 250_000


def test_the_rules_of_a_run_are_shown_in_the_words_of_the_options() -> None:
    hub = Hub(min_world=3, on_underflow=int(Underflow.RAISE), straggler_s=2.5)
    hub.members(3)
    assert "min_world 3  on_underflow raise  straggler 2.5 s  abandon_after never" in shown(hub)
    document = hub.status()
    assert (document["on_underflow"], document["straggler_s"]) == ("raise", 2.5)
    assert document["abandon_after_s"] is None
    hub = Hub(abandon_after_s=90.0)
    assert "min_world 1  on_underflow wait  straggler wait  abandon_after 90 s" in shown(hub)


def test_a_pause_says_what_there_is_and_what_it_takes() -> None:
    hub = Hub(min_world=2)
    a, b = hub.members(2)
    assert "paused" not in shown(hub) and "flush: none" in shown(hub)
    hub.kill(b)
    assert f"flush: for epoch 2, awaits {'01' * 4}.1" in shown(hub)
    a.report()
    a.install()
    assert "paused: 1 of min_world 2 members" in shown(hub)


def test_the_lines_of_a_status_are_whole_where_they_are_piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    hub.members(2)
    document = hub.status()
    for member in document["members"]:
        member["address"] = "[2001:db8:1234:5678:9abc:def0:1234:5678]:48148"
    monkeypatch.setattr("pccl.cli.status.fetch_status_now", lambda *_, **__: document)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["status", "127.0.0.1:1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run ") and " up " in lines[0]
    assert sum("[2001:db8:1234:5678:9abc:def0:1234:5678]:48148" in line for line in lines) == 2


def test_what_ucx_moves_a_peers_bytes_by_is_shown_where_a_peer_uses_it() -> None:
    hub = Hub()
    a, b = hub.members(2)
    assert "UCX" not in shown(hub)
    a.say(CarriedBy("rc_mlx5/mlx5_0:1"))
    assert [row["ucx"] for row in hub.status()["members"]] == ["rc_mlx5/mlx5_0:1", None]
    lines = shown(hub)
    assert "UCX by" in lines and "rc_mlx5/mlx5_0:1" in lines
    a.say(CarriedBy("tcp/eth0"))
    assert hub.status()["members"][0]["ucx"] == "tcp/eth0"
    assert b.peer_id  # it says nothing, and nothing is said of it


@pytest.mark.parametrize(
    "body",
    [b"[" * 60_000, b'{"a":' * 10_000, b'{"a":' * 40 + b"1" + b"}" * 40, b"[]", b"\xff"],
    ids=["deep list", "deep object", "too deep", "no object", "no text"],
)
def test_a_reply_that_is_no_status_is_refused_however_it_is_made(body: bytes) -> None:
    with pytest.raises(RemoteError, match="status"):
        document_of(StatusReply(body))


def test_whatever_words_a_status_uses_they_are_shown_and_are_no_markup() -> None:
    body = b"""{"run_id": "[/]", "profile": "[bold", "epoch": "[/link]", "paused": true,
                "min_world": "[/x]", "straggler_s": "soon", "abandon_after_s": [1],
                "uptime_s": Infinity, "generation": {"a": NaN}}"""
    text = io.StringIO()
    show(document_of(StatusReply(body)), Console(file=text, width=200))
    assert "run [/]" in text.getvalue() and "profile [bold" in text.getvalue()
    assert "of min_world [/x] members" in text.getvalue() and "straggler soon" in text.getvalue()


def test_within_which_tls_each_peers_lanes_are_is_shown() -> None:
    hub = Hub()
    a, b = hub.members(2)
    assert "lanes within" not in shown(hub)
    a.say(CarriedBy("TLS 1.3, OpenSSL 3.0.19, /lib/libcrypto.so.3"))
    b.say(CarriedBy("TLS 1.3, OpenSSL 3.5.1, /lib64/libcrypto.so.3"))
    rows = hub.status()["members"]
    assert [row["tls"] for row in rows] == [
        "TLS 1.3, OpenSSL 3.0.19, /lib/libcrypto.so.3",
        "TLS 1.3, OpenSSL 3.5.1, /lib64/libcrypto.so.3",
    ]
    assert [row["ucx"] for row in rows] == [None, None]
    assert "lanes within" in shown(hub) and "3.5.1" in shown(hub)
