"""Free memory goes back while a process grows, not only at its end."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from labkit.memory import process_bytes, return_free_memory, trimmed
from labkit.memory.trim import rest_seconds

BLOCKS, BLOCK_VALUES = 4000, 15_000  # 60 kB each, which glibc serves from its heap
HOLES_BYTES = BLOCKS * BLOCK_VALUES * 4 * 9 // 10
GROWN_BYTES = 200_000_000


@pytest.fixture(autouse=True)
def nothing_left_by_other_tests() -> None:
    """Free memory of an earlier test would be taken for these tests' own: a heap with room does not grow."""
    return_free_memory()


def blocks_with_holes() -> list[torch.Tensor]:
    """Every tenth of many blocks; what the others held lies between live ones, and the heap keeps it."""
    return [torch.ones(BLOCK_VALUES) for _ in range(BLOCKS)][::10]


def becomes_smaller_than(limit_bytes: int, within_seconds: float) -> bool:
    end = time.monotonic() + within_seconds
    while process_bytes() >= limit_bytes:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_holes_in_the_heap_go_back_once_the_process_grows() -> None:
    kept = blocks_with_holes()
    before = process_bytes()
    with trimmed():
        grown = torch.ones(GROWN_BYTES // 4)
        assert becomes_smaller_than(before + GROWN_BYTES - HOLES_BYTES // 2, within_seconds=10)
    assert all(block[-1] == 1 for block in [*kept, grown])


def test_what_was_there_before_is_not_searched_in_the_block_and_is_again_after_it() -> None:
    assert gc.get_freeze_count() == 0
    with trimmed():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_without_it_the_heap_keeps_them() -> None:
    kept = blocks_with_holes()
    before = process_bytes()
    grown = torch.ones(GROWN_BYTES // 4)
    assert not becomes_smaller_than(before + GROWN_BYTES - HOLES_BYTES // 2, within_seconds=0.5)
    assert all(block[-1] == 1 for block in [*kept, grown])


@pytest.fixture
def rare_collections() -> Iterator[None]:
    """As labs set it up: garbage is looked for so seldom that it would not happen within the test."""
    usual = gc.get_threshold()
    gc.set_threshold(1_000_000, 50, 100)
    yield
    gc.set_threshold(*usual)


@pytest.mark.usefixtures("rare_collections")
def test_a_tensor_in_a_cycle_goes_once_the_process_grows() -> None:
    before = process_bytes()
    cycle: list[object] = [torch.ones(GROWN_BYTES // 4)]
    cycle.append(cycle)
    del cycle
    assert process_bytes() > before + GROWN_BYTES // 2, "the cycle should hold its tensor until someone looks"
    with trimmed():
        grown = torch.ones(GROWN_BYTES // 4)
        assert becomes_smaller_than(before + GROWN_BYTES * 3 // 2, within_seconds=10)
    assert grown[-1] == 1


def test_looks_that_take_long_are_seldom() -> None:
    assert rest_seconds(0.002) == rest_seconds(0.0) > 0
    assert rest_seconds(1.0) == pytest.approx(20.0)
