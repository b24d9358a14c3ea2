"""The arithmetic from seconds to verdicts, on numbers one can check by hand."""

from __future__ import annotations

import pytest

from benchmarks.measure import Cell, Timing, Vitals
from benchmarks.report import Bar, judge, markdown_table, time_rows, wire_over_loopback
from benchmarks.rivals import TRANSFER_BYTES
from pccl.base.errors import UsageError
from pccl.bench.all_reduce import Setting, figures
from pccl.bench.arithmetic import (
    aggregate_wire,
    algbw,
    busbw,
    cpu_s_per_gb,
    parse_bytes,
    quantile,
    show_bytes,
    show_seconds,
    slowest,
)

MIB = 1 << 20
LARGE = 64 * MIB


def timing(seconds: float, cpu_s_per_gb: float = 1.0) -> Timing:
    return Timing(seconds, seconds, seconds, seconds, 3, cpu_s_per_gb)


def cell(world: int, size: int, **seconds: float) -> Cell:
    named = {name.replace("_", "-"): timing(value) for name, value in seconds.items()}
    return Cell(world, size, named)


def verdicts(bars: list[Bar]) -> dict[str, bool | None]:
    return {bar.what: bar.met for bar in bars}


def test_sizes_are_read_as_people_write_them() -> None:
    texts = ["4096", "64KiB", "64 MiB", "1.5MiB", "4k", "1GB"]
    wanted = [4096, 65536, LARGE, 3 * MIB // 2, 4096, 10**9]
    assert [parse_bytes(text) for text in texts] == wanted


@pytest.mark.parametrize("text", ["", "0", "-4KiB", "4XiB", "1.00001KiB", "nan", "9999999GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


def test_sizes_and_times_are_shown_with_three_digits_or_whole() -> None:
    assert [show_bytes(n) for n in (5, 4096, 1536, LARGE)] == ["5 B", "4 KiB", "1.50 KiB", "64 MiB"]
    shown = [show_seconds(s) for s in (0.0000153, 0.000153, 0.00153, 0.0153, 0.153)]
    assert shown == ["0.0153", "0.153", "1.53", "15.3", "153"]


def test_the_median_lies_between_the_two_in_the_middle() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([4.0, 1.0, 3.0, 2.0], 1.0) == 4.0
    with pytest.raises(ValueError):
        quantile([], 0.5)


def test_an_iteration_takes_as_long_as_its_slowest_rank() -> None:
    assert slowest([[1.0, 5.0], [2.0, 4.0], [1.5, 3.0]]) == [2.0, 5.0]
    with pytest.raises(ValueError):
        slowest([[1.0, 2.0], [1.0]])


def test_rates_count_what_the_caller_sees_one_wire_and_all_wires() -> None:
    assert algbw(10**9, 0.5) == 2.0
    assert busbw(10**9, 0.5, 4) == 3.0  # 2 * 3/4
    assert aggregate_wire(10**9, 0.5, 4) == 12.0  # four ranks, 3.0 each
    assert cpu_s_per_gb([1.0, 3.0], 10**9, 2) == 2.0


def test_figures_take_the_slowest_rank_and_the_bytes_of_all() -> None:
    answers = [
        {"times": [0.1, 0.3], "wire_bytes": 4096, "operations": 4, "retries": 0, "cpu_s": 0.5},
        {"times": [0.2, 0.2], "wire_bytes": 4200, "operations": 4, "retries": 1, "cpu_s": 0.5},
    ]
    found = figures(Setting(world=2, byte_count=1000), answers)
    assert (found.median_s, found.best_s, found.retries) == (0.25, 0.2, 1)
    assert (found.wire_bytes, found.ideal_wire_bytes) == (2074.0, 2000)
    assert found.algbw == pytest.approx(1000 / 0.25 / 1e9)
    assert found.cpu_s_per_gb == pytest.approx(1.0 / (2000 / 1e9))


@pytest.mark.parametrize(
    "wrong", [{"world": 0}, {"byte_count": 4095}, {"dtype": "f8"}, {"world": 1000}]
)
def test_a_setting_that_cannot_be_measured_is_refused(wrong: dict[str, int]) -> None:
    good: dict[str, int] = {"world": 2, "byte_count": 4096}
    with pytest.raises(UsageError):
        Setting(**{**good, **wrong})  # type: ignore[arg-type]


def test_the_wire_rate_is_held_against_one_connection() -> None:
    # 64 MiB in 40 ms at 4 ranks: 6 tensors on the wires; loopback does one of them in 10 ms.
    seen = cell(4, LARGE, pccl=0.040, loopback=TRANSFER_BYTES / LARGE * 0.010)
    assert wire_over_loopback(seen, "pccl") == pytest.approx(1.5)


def test_large_tensors_are_held_against_the_faster_rival() -> None:
    timings = {
        "pccl": timing(0.020, cpu_s_per_gb=1.1),
        "pccl-out": timing(0.018),
        "gloo": timing(0.050),
        "openmpi": timing(0.039),
        "loopback": timing(0.010),
    }
    assert verdicts(judge([Cell(2, LARGE, timings)], [])) == {
        "64 MiB: best rival's time / pccl's": False,  # 1.95, and 2 is asked
        "64 MiB: wire rate / loopback": True,  # 1.0 exactly
        "64 MiB out=: wire rate / loopback": True,
        "64 MiB: CPU s per GB / gloo's": False,
    }


def test_small_tensors_are_held_against_both_rivals() -> None:
    small = cell(4, 4096, pccl=0.0005, openmpi=0.00005, gloo=0.0054)
    middle = cell(4, MIB, pccl=0.001, openmpi=0.0007, gloo=0.0064)
    assert verdicts(judge([small, middle], [])) == {
        "4 KiB: time / Open MPI's": False,
        "4 KiB: time / gloo's": True,
        "1 MiB: time / Open MPI's": True,
        "1 MiB: time / gloo's": True,
    }


def test_without_a_rival_a_bar_is_neither_met_nor_missed() -> None:
    bars = judge([cell(8, LARGE, pccl=0.2, gloo=0.9, loopback=0.01)], [])
    by_name = verdicts(bars)
    assert by_name["64 MiB: best rival's time / pccl's"] is None
    assert "not measured" in bars[0].row


def test_cells_that_no_bar_speaks_of_are_not_judged() -> None:
    assert judge([cell(3, LARGE, pccl=1.0), cell(2, 64 << 10, pccl=1.0)], []) == []


def test_memory_may_grow_by_the_tensor_and_a_third_and_numbers_of_things_not_at_all() -> None:
    seen = Vitals(2, LARGE, 148 * MIB, threads=(5, 5), sockets=(7, 8), operations=1000)
    assert verdicts(judge([], [seen])) == {
        "peak memory beyond the tensor, MiB": False,  # 1.3 * 64 + 64 = 147.2
        "threads more after 1000 operations": True,
        "sockets more after 1000 operations": False,
    }


def test_the_table_has_a_row_for_each_cell_and_a_dash_for_what_was_left_out() -> None:
    header, rows = time_rows([cell(2, 4096, pccl=0.0001)], ["pccl", "gloo"])
    assert markdown_table(header, rows).splitlines() == [
        "| ranks | size | pccl ms | gloo ms |",
        "| --- | --- | --- | --- |",
        "| 2 | 4 KiB | 0.100 | – |",
    ]
