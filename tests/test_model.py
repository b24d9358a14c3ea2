"""The model's mutants: none is left out of the list, and the document explains them all."""

import re
from pathlib import Path

from tools.model import BASE, MUTANTS

ROOT = Path(__file__).resolve().parent.parent


def planted() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "model").glob("*.pml"))
    return set(re.findall(r"#ifn?def MUT_(\w+)", text))


def test_every_fault_that_the_model_can_hold_is_checked() -> None:
    checked = {d.removeprefix("MUT_") for m in MUTANTS for d in m.defines if d.startswith("MUT_")}
    assert checked == planted()


def test_every_mutant_has_the_bounds_of_a_model_that_holds() -> None:
    sound = {frozenset(m.defines) for m in BASE}
    alone = {frozenset(d for d in m.defines if not d.startswith("MUT_")) for m in MUTANTS}
    # The failures are a choice more in the same bounds.
    assert alone - {bounds - {"FAILS=1"} for bounds in sound} <= sound


def test_the_document_explains_every_mutant() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| ", (ROOT / "docs/MODEL.md").read_text(), re.MULTILINE)
    assert {m.name for m in MUTANTS} <= set(rows)
