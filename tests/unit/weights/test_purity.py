"""What decides in weight sync touches no clock, socket or dice, as in the rooms."""

from __future__ import annotations

from tests.test_imports import IMPORTS, IMPURE

PURE = "layout streams update applying frames history tree errors".split()


def test_modules_that_decide_import_nothing_impure_and_no_shell() -> None:
    pure = {f"pccl.weights.{name}" for name in PURE}
    wrong = [
        str(found)
        for found in IMPORTS
        if found.importer in pure
        and (
            found.target.split(".")[0] in IMPURE
            or (found.target.startswith("pccl.weights.") and found.target not in pure)
        )
    ]
    assert {found.importer for found in IMPORTS} >= pure
    assert not wrong, "\n" + "\n".join(wrong)
