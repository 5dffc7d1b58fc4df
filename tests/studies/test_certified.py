"""Studies certify their networks: the tables hold the shares that brute force finds, and old runs claim nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shiftscope import certify
from shiftscope.datasets.dataset import load
from shiftscope.estimates import proportion_over_seeds
from shiftscope.models.family import Network
from shiftscope.report import Chart, Rows
from shiftscope.report.study import study_page
from shiftscope.studies import records
from shiftscope.studies.certified import RADIUS, certified_at
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from small import SMALL, Finished, one_thread


def test_shares_equal_those_of_certify(trained: Finished) -> None:
    table = read_folder(trained.out).certificates()
    assert (trained.out / "certificates.csv").read_text() == table.to_csv()
    assert [row["radius"] for row in table.rows] == 2 * list(range(7))
    radii, right = [], []
    for run in trained.study.cells()[1].runs:
        data = load(run.data)
        folder = trained.out / "runs" / run.content_id(data.checksum)
        network = Network(run.network.model_validate(json.loads((folder / "record.json").read_text())["spec"]["network"]))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        images, fill = data.canvas.place(data.test.images), data.canvas.colour.tolist()
        found = certify(network.eval(), images, data.test.labels, radius=6, fill=fill, method="direct")
        radii.append(found.radii)
        right.append(found.right)
    kept, correct = torch.stack(radii), torch.stack(right)
    for row in table.rows[7:]:
        held = kept >= row["radius"]
        assert row["unchanged"] == proportion_over_seeds(held)
        assert row["right"] == proportion_over_seeds(held & correct)


def test_sample_of_images_at_every_shift_has_the_values_of_these_images(trained: Finished, tmp_path: Path) -> None:
    (tmp_path / "sampled.toml").write_text(SMALL.replace("max_shift = 6", "max_shift = 6\nevery_shift_images = 7"))
    study = load_study(str(tmp_path / "sampled.toml"))
    with one_thread():
        table = run_study(study, out=tmp_path / "out")
    sample = [4, 12, 21, 30, 38, 47, 55]  # the middles of seven equal parts of 60 images
    rights, held = [], []
    for one, other in zip(trained.study.cells()[1].runs, study.cells()[1].runs, strict=True):
        checksum = load(one.data).checksum
        whole, few = (
            records.read_finished(out / "runs" / run.content_id(checksum))
            for out, run in ((trained.out, one), (tmp_path / "out", other))
        )
        for name in ("mcs_all_shifts", "worst_case", RADIUS):
            torch.testing.assert_close(few.values[name], whole.values[name][sample])
        torch.testing.assert_close(few.values["mcs"], whole.values["mcs"])
        rights.append(whole.values["test_accuracy"][sample] > 0)
        held.append(whole.values[RADIUS][sample] >= 2)
    assert "a sample of 7 images, each under every shift" in " ".join(table.notes)
    row = read_folder(tmp_path / "out").certificates().rows[7 + 2]
    assert row["right"] == proportion_over_seeds(torch.stack(held) & torch.stack(rights))


def test_narrow_table_holds_a_few_radii(trained: Finished) -> None:
    curves = read_folder(trained.out).certificates()
    narrow = certified_at(curves)
    shares = [f"{share}_at_{radius}" for share in ("right", "unchanged") for radius in (1, 4, 6)]
    assert narrow.columns == ("factor", "seeds", *shares)
    assert [row["factor"] for row in narrow.rows] == [1, 4]
    assert narrow.rows[1]["right_at_4"] == curves.rows[7 + 4]["right"]


def test_page_shows_curve_and_shares(trained: Finished) -> None:
    sections = study_page(read_folder(trained.out)).sections
    chart = next(each for each in sections if isinstance(each, Chart) and each.x == "radius")
    assert chart.series == ("factor",)
    assert any(isinstance(each, Rows) and "right_at_4" in each.table.columns for each in sections)


@pytest.mark.parametrize("lacking", [1, 4])
def test_runs_without_radii_have_no_row_and_other_tables_stay(trained: Finished, tmp_path: Path, lacking: int) -> None:
    """One run lacks them, or all do, as runs of earlier versions."""
    out = Path(shutil.copytree(trained.out, tmp_path / "study"))
    (out / "certificates.csv").unlink()
    (out / "certificates.md").unlink()
    for folder in sorted((out / "runs").iterdir())[:lacking]:
        finished = records.load(folder)
        assert finished is not None
        values = {name: each for name, each in finished.values.items() if name != RADIUS}
        records.write_measures(
            folder, records.Finished(finished.record, values, finished.maps, finished.curves, finished.responses)
        )
    before = {name: (out / name).read_bytes() for name in ("table.csv", "curves.csv", "layers.csv")}
    results = read_folder(out)
    results.write_tables()
    assert {name: (out / name).read_bytes() for name in before} == before
    assert len(results.certificates().rows) == (7 if lacking == 1 else 0)
    assert (out / "certificates.csv").exists() == (lacking == 1)
    assert any(isinstance(each, Chart) and each.x == "radius" for each in study_page(results).sections) == (lacking == 1)
