"""The self-check passes on what is right and misses what is made wrong."""

from __future__ import annotations

import pytest
import torch

from shiftscope.audits import selfcheck


def test_everything_passes() -> None:
    table, passed = selfcheck.run_checks()
    assert passed, table.to_markdown()
    assert {row["expected"] for row in table.rows} == {"1", "below 1"}


def test_one_shift_for_a_whole_data_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_drawn", lambda: torch.full((500, 2), 4))
    table, passed = selfcheck.run_checks()
    assert not passed
    assert [row["check"] for row in table.rows if row["verdict"] == "MISSED"] == [
        "shifts of the protocol: not one for a whole data set"
    ]


def test_a_measure_that_calls_everything_invariant_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from shiftscope.engine import direct

    monkeypatch.setattr(direct.Direct, "_windows", lambda self, images, shifts: (images for _ in shifts))
    monkeypatch.setattr(
        selfcheck,
        "_outputs",
        lambda model, mode, method="auto": selfcheck.shift_outputs(
            model, selfcheck._images(), selfcheck.grid(4), mode=mode, method="direct"
        ),
    )
    table, passed = selfcheck.run_checks()
    assert not passed
    missed = [row["check"] for row in table.rows if row["verdict"] == "MISSED"]
    assert len(missed) == 4
    assert all(name.startswith(("mcs", "all_agree")) for name in missed)
