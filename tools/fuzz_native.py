"""Runs the libFuzzer targets of the C++ core.

`./dev fuzz native [NAME ...] [--runs N] [--seconds S] [--jobs N] [--keep]`

`build/fuzz` holds the targets; each runs in a process of its own, as many at once as there are
processors, from the corpus that the repository keeps (native/fuzz/corpus), seeds made of tests/wire
and what earlier runs have found (build/fuzz/corpus).  An input that fails is kept there as
crash-...; `build/fuzz/fuzz_NAME FILE` plays it again.  `--keep` fuzzes nothing: it brings the
repository's corpus up to date with what was found, the fewest inputs that reach the same edges.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import ssl
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import corpus

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "fuzz"
KEPT = ROOT / "native" / "fuzz" / "corpus"
# All together.  The slowest come first; decoders are quicker than whole steps or handshakes are.
RUNS = 10_400_000
SHARES = {
    "lane": 0.003,
    "tls_stream": 0.0002,
    "secured_door": 0.002,
    "outcome": 0.01,
    "ucx": 0.02,
    "handshake": 0.03,
    "dialler": 0.01,
    "coordinator_link": 0.01,
    "framed_socket": 0.08,
    "codec": 0.10,
    "control_frames": 0.25,
    "ring": 0.15,
    "tls": 0.10,
    "wire": 0.2348,
}
BYTES_MAX = {
    "codec": 400,
    "control_frames": 600,
    "coordinator_link": 300,
    "dialler": 300,
    "framed_socket": 300,
    "handshake": 400,
    "lane": 600,
    "outcome": 300,
    "ring": 300,
    "secured_door": 600,
    "tls": 400,
    "tls_stream": 120,
    "ucx": 200,
    "wire": 200,
}
# Whole stacks of each allocation cost more than they tell; set it by hand for a replay.
ENVIRONMENT = {"ASAN_OPTIONS": "malloc_context_size=1:quarantine_size_mb=16"} | os.environ
HELLO_RUN_ID, HELLO_SECRET = slice(4, 20), slice(44, 60)


@dataclass(frozen=True)
class Result:
    name: str
    executions: int
    seconds: float
    covered: int
    trouble: str


def listed(bodies: list[bytes]) -> bytes:
    """Bodies with a byte of length each, as the targets read them."""
    return b"".join(bytes((len(body),)) + body for body in bodies if len(body) < 256)


def at_the_door(body: bytes) -> bytes:
    """A HELLO with the run and the secret that fuzz_handshake expects."""
    hello = bytearray(body)
    hello[HELLO_RUN_ID] = b"\x09" * 16
    hello[HELLO_SECRET] = b"\x01" * 16
    return bytes(hello)


def in_pieces(said: bytes, size: int = 100) -> bytes:
    """What a stranger says, cut as fuzz_secured_door reads it."""
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    return b"".join(bytes((len(piece) - 1,)) + piece for piece in pieces)


def greeting() -> bytes:
    """A whole ClientHello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def seeds(name: str) -> list[bytes]:
    vectors = json.loads((ROOT / "tests/wire/native_frames.json").read_text(encoding="utf-8"))
    valid = [(v["frame"], bytes.fromhex(v["body"])) for v in vectors["valid"]]
    bodies = [body for _, body in valid] + [bytes.fromhex(v["body"]) for v in vectors["invalid"]]
    match name:
        case "control_frames":
            return bodies
        case "framed_socket":
            return [bytes((0, 7)) + listed(bodies[at : at + 3]) for at in range(len(bodies))]
        case "handshake":
            hellos = [at_the_door(body) for frame, body in valid if frame == "NativeHello"]
            relays = [body for frame, body in valid if frame == "RelayFrame"]
            return [listed([hello, *rest]) for hello in hellos for rest in ([], relays)]
        case "secured_door":
            hello = greeting()
            whole = in_pieces(hello) + in_pieces(b"\x14\x03\x03\x00\x01\x01")
            others = (b"PCCLSTR1" + hello, b"PCCLSTR", b"GET / HTTP/1.1\r\n", bodies[0])
            return [whole, in_pieces(hello[:90]), *map(in_pieces, others)]
        case "dialler":  # as it opens a lane, through a relay, by meeting there, and when called
            said = ([10], [10, 10], [10, 6, 0], [10, 6, 5])
            return [bytes((shape, *steps)) for shape in (0, 3, 6, 14, 250) for steps in said]
        case "coordinator_link":
            up = bytes((13, 1))
            return [up, *(up + bytes((kind, 1, 2)) for kind in range(16))]
        case _:
            dice = random.Random(1)
            return [dice.randbytes(size) for size in (20, 60, 200, 400)] * 8


def lay_out(name: str) -> Path:
    """Returns the folder that a target begins from."""
    found = BUILT / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    for seed in (*seeds(name), *corpus.read(KEPT / name)):
        (found / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    return found


def keep(name: str) -> int:
    """Keeps the fewest of all inputs that reach what all of them reach; returns how many.

    Raises:
        CalledProcessError: one of them fails.
    """
    found = lay_out(name)
    with tempfile.TemporaryDirectory() as chosen:
        command = [str(BUILT / f"fuzz_{name}"), "-merge=1", "-use_counters=0", "-timeout=30"]
        command += [f"-max_len={BYTES_MAX[name]}", chosen, str(found)]
        subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
        return corpus.write(KEPT / name, (file.read_bytes() for file in Path(chosen).iterdir()))


def fuzz(name: str, runs: int, seconds: int) -> Result:
    found = lay_out(name)
    command = [str(BUILT / f"fuzz_{name}"), str(found), f"-runs={runs}", "-timeout=30"]
    command += [f"-max_len={BYTES_MAX[name]}", "-print_final_stats=1"]
    if seconds:
        command += [f"-max_total_time={seconds}"]
    # What entropic scheduling keeps of each feature takes longer than a run of most targets.
    command += ["-entropic=0"]
    command += [f"-artifact_prefix={found}/", "-rss_limit_mb=2048"]
    began_s = time.monotonic()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    executed = re.search(r"number_of_executed_units: *(\d+)", done.stdout)
    covered = re.findall(r"cov: (\d+)", done.stdout)
    return Result(
        name,
        int(executed[1]) if executed else 0,
        time.monotonic() - began_s,
        int(covered[-1]) if covered else 0,
        "" if done.returncode == 0 else done.stdout[-6000:],
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz native", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SHARES))
    parser.add_argument("--runs", type=int, default=RUNS, help="executions of all together")
    parser.add_argument("--seconds", type=int, default=0, help="each target at most so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at once")
    parser.add_argument("--keep", action="store_true", help="bring the kept corpora up to date")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(SHARES)
    if unknown := set(names) - set(SHARES):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.keep:
        for name in names:
            print(f"{name:16} {keep(name):>5} inputs kept")
        return 0
    whole = sum(SHARES[name] for name in names)
    with ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        results = list(
            pool.map(
                lambda name: fuzz(
                    name, int(arguments.runs * SHARES[name] / whole), arguments.seconds
                ),
                names,
            )
        )
    for result in results:
        rate = result.executions / max(result.seconds, 0.001)
        print(
            f"{result.name:16} {result.executions:>12,} executions in {result.seconds:6.0f} s, "
            f"{rate:>9,.0f}/s, {result.covered} edges{'  FAILED' if result.trouble else ''}"
        )
    for result in results:
        if result.trouble:
            print(f"--- {result.name}\n{result.trouble}", file=sys.stderr)
    total = sum(result.executions for result in results)
    print(f"{total:,} executions, {sum(bool(r.trouble) for r in results)} targets failed")
    return int(any(result.trouble for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
