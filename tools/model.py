"""Checks model/protocol.pml with Spin: every base model must hold, every mutant must fail.

    python tools/model.py [NAME ...] [--wide] [--story] [--jobs N]

Each line says what was checked, in how many states and seconds, and the verdict.  NAME restricts
the run to models and mutants whose name contains it; --wide takes bounds that need minutes to an
hour each; --story prints how a model came to fail.  docs/MODEL.md says what the model covers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "model"
WORK: Final = ROOT / "build" / "model"
MEMORY_MIB: Final = 4000
DEPTH: Final = 10_000
TIMEOUT_S: Final = 900.0  # per model; 20 s on a quiet machine may be long on a busy one
WIDE_TIMEOUT_S: Final = 7200.0


@dataclass(frozen=True)
class Model:
    """One run of Spin: the model at some bounds, as it is or with one fault planted."""

    name: str
    defines: tuple[str, ...]
    mutant: bool = False


@dataclass(frozen=True)
class Verdict:
    model: Model
    states: int
    seconds: float
    violated: str  # the assertion, or empty
    trouble: str = ""  # why there is no answer

    @property
    def right(self) -> bool:
        return not self.trouble and self.model.mutant == bool(self.violated)


FLUSH: Final = ("NS=1", "NE=3", "NG=2")
PLANS: Final = ("NS=2", "NE=3", "NG=2", "PLANS=3")
NAMES: Final = ("NS=2", "NE=3", "NG=2", "PLANS=1", "NAMES")
AFTER_FLUSH: Final = ("NS=2", "NE=4", "NG=1", "PLANS=1")

BASE: Final = (
    Model("flush, failures", (*FLUSH, "FAILS=1")),
    Model("flush, two steps in flight", ("NS=2", "NE=3", "NG=1")),
    Model("joins and leaves, flush, restart", PLANS),
    Model("join at a named step, flush, restart", NAMES),
    Model("joins and leaves, four epochs", ("NS=1", "NE=4", "NG=2", "PLANS=3")),
    Model("join between two flushes", AFTER_FLUSH),
    Model("excluded and back", ("NS=1", "NE=4", "NG=1", "PLANS=1", "EXCLUDES=1")),
)
WIDE: Final = (
    Model("wide: flush, four epochs", ("NS=1", "NE=4", "NG=2")),
    Model("wide: flush, two steps, restart", ("NS=2", "NE=3", "NG=2")),
    Model("wide: leaves, three members", ("NS=2", "NE=3", "NG=2", "PLANS=2")),
    Model("wide: join at a named step, three steps", ("NS=3", "NE=3", "NG=2", "PLANS=1", "NAMES")),
    Model("wide: excluded and back, restart", ("NS=1", "NE=4", "NG=2", "PLANS=1", "EXCLUDES=1")),
    Model("wide: excluded and back, two steps", (*AFTER_FLUSH, "EXCLUDES=1")),
    Model("wide: three coordinators", ("NS=1", "NE=4", "NG=3", "PLANS=3")),
)


def mutant(name: str, *defines: str) -> Model:
    return Model(name.lower().replace("_", " "), (*defines, f"MUT_{name}"), mutant=True)


MUTANTS: Final = (
    mutant("DELIVER_AT_COMPLETION", *FLUSH),
    mutant("A_DONE_MISSING", *FLUSH),
    mutant("ANY_EPOCHS_DONE", *FLUSH),
    mutant("NO_FREEZE", *FLUSH),
    mutant("PRESUMED_ABORT", *FLUSH),
    mutant("ONE_IS_ENOUGH", *FLUSH),
    mutant("NOTHING_CARRIED", *FLUSH),
    mutant("FAILURE_NOT_AWAITED", *FLUSH, "FAILS=1"),
    mutant("NO_FENCE", *FLUSH),
    mutant("SAID_BEFORE_WRITTEN", *FLUSH),
    mutant("ACTIVATION_NOT_WRITTEN", *PLANS),
    mutant("NO_HOLD", *PLANS),
    mutant("LEAST_HOLD", *PLANS),
    mutant("HELD_BELOW_DECIDED", *AFTER_FLUSH),
    mutant("PENDING_STAYS", *PLANS),
    mutant("JOINER_AT_S", *NAMES),
    mutant("ACTIVATED_VIEW_FORGOTTEN", *PLANS),
    mutant("OLDER_VIEW_FORGOTTEN", *PLANS),
    mutant("LEAVERS_STAY", *PLANS),
    mutant("LEAVER_ALONE", *PLANS),
)


def folder_of(model: Model) -> Path:
    return WORK / re.sub(r"[^a-z0-9]+", "-", model.name).strip("-")


def build(model: Model, folder: Path) -> str:
    """Makes the checker; returns what went wrong, if anything did."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder)
    # Partial order reduction finds nothing to leave out: all that matters is shared.
    optimise = "-O1" if model.mutant else "-O2"  # a mutant is soon found
    compiler = ["gcc", optimise, "-w", "-DSAFETY", "-DHC4", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MIB}"]
    commands = (
        ["spin", "-a", *(f"-D{d}" for d in model.defines), "protocol.pml"],
        [*compiler, "-o", "pan", "pan.c"],
    )
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0 or "Error" in done.stdout:
            return f"{command[0]}: {(done.stdout + done.stderr).strip()[-400:]}"
    return ""


def check(model: Model, timeout_s: float) -> Verdict:
    began_s = time.monotonic()
    folder = folder_of(model)
    trouble = build(model, folder)
    if trouble:
        return Verdict(model, 0, time.monotonic() - began_s, "", trouble)
    # -E: a model whose bounds are used up stands still, which is no error.
    command = ["./pan", "-n", "-E", f"-m{DEPTH}", "-w22"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(model, 0, time.monotonic() - began_s, "", f"no answer in {timeout_s:g} s")
    output = done.stdout + done.stderr
    states = re.search(r"([\d.e+]+) states, stored", output)
    violated = re.search(r"assertion violated (.*) \(at depth", output)
    errors = re.search(r"errors: (\d+)", output)
    for sign in ("search depth too small", "out of memory", "Search not completed"):
        if sign in output and violated is None:
            trouble = sign
    if states is None or errors is None:
        trouble = f"the checker ended with {done.returncode}: {output.strip()[-400:]}"
    elif (int(errors[1]) > 0) != (violated is not None):
        trouble = "an error that is no violated assertion"
    return Verdict(
        model,
        int(float(states[1])) if states else 0,
        time.monotonic() - began_s,
        violated[1] if violated else "",
        trouble,
    )


def story(model: Model) -> list[str]:
    """Returns what happened on the way to the violated assertion, in words."""
    defines = [f"-D{d}" for d in model.defines]
    done = subprocess.run(
        ["spin", "-t", "-T", *defines, "protocol.pml"],
        cwd=folder_of(model),
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.compile(r"\s*(?=peer |coordinator |epoch |all have |spin: text of failed)")
    return [told.sub("", line, 1) for line in done.stdout.splitlines() if told.match(line)]


def line_of(verdict: Verdict) -> str:
    model = verdict.model
    if verdict.trouble:
        said = f"NO ANSWER: {verdict.trouble}"
    elif model.mutant:
        said = "fails, as it must" if verdict.violated else "SURVIVES: the model does not see it"
    else:
        said = f"FAILS: {verdict.violated}" if verdict.violated else "holds"
    kind = "mutant" if model.mutant else "model"
    return f"{kind:<7} {model.name:<40} {verdict.states:>12,} {verdict.seconds:>7.1f}  {said}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names of models and mutants")
    parser.add_argument("--wide", action="store_true", help="wider bounds instead, no mutants")
    parser.add_argument("--story", action="store_true", help="how each failing model came to fail")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    args = parser.parse_args()
    if shutil.which("spin") is None or shutil.which("gcc") is None:
        print("model: it needs Spin and gcc (Debian: apt install spin gcc)", file=sys.stderr)
        return 2
    models = WIDE if args.wide else (*BASE, *MUTANTS)
    chosen = [m for m in models if not args.names or any(n in m.name for n in args.names)]
    if not chosen:
        print("model: no model has such a name", file=sys.stderr)
        return 2
    began_s = time.monotonic()
    print(f"{'kind':<7} {'what':<40} {'states':>12} {'seconds':>7}  verdict", flush=True)
    verdicts = []
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        timeout_s = WIDE_TIMEOUT_S if args.wide else TIMEOUT_S
        for future in as_completed([pool.submit(check, m, timeout_s) for m in chosen]):
            verdict = future.result()
            verdicts.append(verdict)
            print(line_of(verdict), flush=True)
            if args.story and verdict.violated:
                print(*(f"          {line}" for line in story(verdict.model)), sep="\n", flush=True)
    wrong = [v for v in verdicts if not v.right]
    print(
        f"{len(verdicts)} checked, {len(wrong)} wrong, {sum(v.states for v in verdicts):,} states, "
        f"{time.monotonic() - began_s:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
