"""The self-check passes, and misses measurements that are broken on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from shiftscope.audits.protocols import Protocol
from shiftscope.audits.selfcheck import checks, network_outputs, run_checks
from shiftscope.engine.outputs import Method, Model, Outputs
from shiftscope.shifts import Mode


def missed(**options: object) -> list[str]:
    table, passed = run_checks(checks(**options))
    names = [str(row["check"]) for row in table.rows if row["verdict"] == "MISSED"]
    assert passed == (not names)
    return names


def test_selfcheck_passes() -> None:
    table, passed = run_checks()
    assert passed, table.to_markdown()
    assert {row["expected"] for row in table.rows} == {"1", "below 1"}


def test_one_shift_for_all_images_is_missed() -> None:
    def same_for_all(protocol: Protocol) -> Tensor:
        return torch.full((500, 2), 4)

    assert missed(draw=same_for_all) == ["protocol: images draw different shifts"]


def test_outputs_without_shifts_are_missed() -> None:
    def unshifted(model: Model, mode: Mode, method: Method = "auto") -> Outputs:
        found = network_outputs(model, mode, method)
        return Outputs(found.reference[:, None].expand_as(found.values), found.reference, found.shifts)

    names = missed(outputs=unshifted)
    assert len(names) == 4
    assert all(name.startswith(("mcs", "all_agree")) for name in names)
