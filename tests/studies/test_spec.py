"""Studies: expansion into cells and runs, content ids, settings changed from outside, and errors that name every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftscope.errors import InputError
from shiftscope.studies.loading import load_study, shipped_studies
from shiftscope.studies.sections import SECTIONS, flatten
from shiftscope.studies.spec import SCHEMA, Run, Study
from shiftscope.tables import FRACTIONS

GOOD = """
title = "Two factors"
seeds = [4, 7]
[data]
canvas = 30
image_size = 10
[network]
channels = [4, 8]
[grid]
network.factor = [1, 4]
network.pool = ["max", "average"]
[source]
title = "slides"
[[source.cells]]
network.factor = 4
network.pool = "max"
mcs = 0.5
"""

DEFAULTS = {
    "data.name": "digits",
    "data.canvas": 40,
    "data.background": "black",
    "data.allow_cut": False,
    "data.validation_images": 5000,
    "data.split_seed": 0,
    "network.channels": [16, 32, 64],
    "network.convolution_kernel": 3,
    "network.pool_kernel": 2,
    "network.pool": "max",
    "network.factor": 1,
    "network.strided": "first",
    "network.padding": "valid",
    "network.head": "flatten",
    "network.normalise": True,
    "network.input_size": 40,
    "network.input_channels": 1,
    "network.classes": 10,
    "training.optimiser": "adam",
    "training.learning_rate": 0.001,
    "training.learning_rate_decay": 1.0,
    "training.batch_size": 64,
    "training.max_epochs": 100,
    "training.target_train_accuracy": 1.0,
    "training.patience": 3,
    "training.translate": 0,
    "training.precision": "fp32",
    "measure.protocol": "mouton2020",
    "measure.max_shift": 8,
    "measure.seed": 0,
    "seed": 0,
}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_cells_follow_order_of_grid(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    cells = study.cells()
    assert [tuple(cell.settings.values()) for cell in cells] == [(1, "max"), (1, "average"), (4, "max"), (4, "average")]
    assert [run.seed for run in cells[0].runs] == [4, 7]
    assert {(run.network.factor, run.network.pool, run.network.input_size) for run in cells[2].runs} == {(4, "max", 30)}
    assert study.name == "mine"


def test_source_numbers_belong_to_their_cell(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    assert study.source_numbers({"network.factor": 4, "network.pool": "max"}) == {"mcs": 0.5}
    assert study.source_numbers({"network.factor": 1, "network.pool": "max"}) == {}


def test_source_cell_may_name_shared_settings(tmp_path: Path) -> None:
    printed = "[[source.cells]]\nnetwork.factor = {}\nmcs = {}\n"
    text = 'title = "x"\n[network]\nfactor = 4\n[source]\ntitle = "t"\n' + printed.format(1, 0.25) + printed.format(4, 0.5)
    assert load_study(write(tmp_path, text)).source_numbers({}) == {"mcs": 0.5}


def test_name_from_file_name_has_no_spaces(tmp_path: Path) -> None:
    path = tmp_path / "my study.toml"
    path.write_text('title = "x"')
    assert load_study(str(path)).name == "my-study"


def test_quoted_setting_paths_equal_dotted_ones(tmp_path: Path) -> None:
    quoted = GOOD.replace("network.factor =", '"network.factor" =')
    assert load_study(write(tmp_path, quoted)).cells() == load_study(write(tmp_path, GOOD)).cells()


def test_load_study_seeds_replaces_seeds(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, GOOD), seeds=3).seeds == (0, 1, 2)


def test_content_id_depends_on_specification_and_data_only(tmp_path: Path) -> None:
    run = load_study(write(tmp_path, GOOD)).cells()[0].runs[0]
    same = load_study(write(tmp_path, GOOD + "[measure]\nmax_shift = 8\n")).cells()[0].runs[0]
    other = load_study(write(tmp_path, GOOD + "[measure]\nmax_shift = 7\n")).cells()[0].runs[0]
    assert run.content_id("a") == same.content_id("a")
    assert len({run.content_id("a"), run.content_id("b"), other.content_id("a")}) == 3


def test_content_id_and_defaults_are_unchanged() -> None:
    """If this fails, the form of ids or a default has changed: raise SCHEMA, write the new values here and measure again."""
    assert (SCHEMA, Run().content_id("checksum")) == (2, "fc560f0fa243")
    found = flatten(Run().model_dump(mode="json"))
    assert {path: found[path] for path in DEFAULTS} == DEFAULTS


def test_variants_are_first_axis(tmp_path: Path) -> None:
    text = """
title = "Two sets"
[variants.small]
data.canvas = 30
data.image_size = 10
[variants.large]
data.canvas = 40
[grid]
network.factor = [1, 4]
[source]
title = "slides"
[[source.cells]]
variant = "large"
network.factor = 4
mcs = 0.5
"""
    study = load_study(write(tmp_path, text))
    cells = study.cells()
    assert [tuple(cell.settings.values()) for cell in cells] == [("small", 1), ("small", 4), ("large", 1), ("large", 4)]
    assert [cell.runs[0].network.input_size for cell in cells] == [30, 30, 40, 40]
    assert [study.source_numbers(cell.settings) for cell in cells] == [{}, {}, {}, {"mcs": 0.5}]
    assert load_study(write(tmp_path, text), changes={"variant": "large"}).cells() == cells[2:]


OVERRIDES = """
[[overrides]]
of = { network.factor = 4 }
settings = { training.learning_rate = 0.01, data.canvas = 34 }
[[overrides]]
of = { network.factor = [1, 4], network.pool = "max" }
settings = { training.learning_rate = 0.02 }
"""


def test_override_sets_settings_of_its_cells_the_last_one_wins(tmp_path: Path) -> None:
    plain, study = load_study(write(tmp_path, GOOD)), load_study(write(tmp_path, GOOD + OVERRIDES))
    runs = {tuple(cell.settings.values()): cell.runs[0] for cell in study.cells()}
    assert {cell: run.training.learning_rate for cell, run in runs.items()} == {
        (1, "max"): 0.02,
        (1, "average"): 0.001,
        (4, "max"): 0.02,
        (4, "average"): 0.01,
    }
    assert [(run.data.canvas, run.network.input_size) for run in runs.values()] == [(30, 30), (30, 30), (34, 34), (34, 34)]
    assert runs[1, "average"] == plain.cells()[1].runs[0]
    assert [study.overridden(cell.settings).get("training.learning_rate") for cell in study.cells()] == [0.02, None, 0.02, 0.01]
    assert Study.model_validate_json(study.model_dump_json()).cells() == study.cells()


def test_change_replaces_overrides_too(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD + OVERRIDES), changes={"training.learning_rate": 0.5})
    assert {run.training.learning_rate for cell in study.cells() for run in cell.runs} == {0.5}
    assert {run.data.canvas for cell in study.cells()[2:] for run in cell.runs} == {34}
    chosen = load_study(write(tmp_path, GOOD + OVERRIDES), changes={"network.factor": 1})
    assert chosen.cells() == load_study(write(tmp_path, GOOD + OVERRIDES)).cells()[:2]


def test_load_study_changes_replace_settings_and_grid(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    changed = load_study(path, changes={"data.canvas": 34, "network.factor": 4, "network.pool": ["max"]})
    assert [tuple(cell.settings.values()) for cell in changed.cells()] == [(4, "max")]
    assert changed.cells()[0].runs[0].data.canvas == 34


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.canvass": 3}, "'data.canvass' is not a setting that can vary. Did you mean `data.canvas`?"),
        ({"variant": "mars"}, "'mars' is not a variant of this study. This study has no variants."),
        ({"network.factor": 3}, "`factor` must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_load_study_wrong_change_raises(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_study(write(tmp_path, GOOD), changes=change)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_shipped_study_loads(name: str) -> None:
    assert load_study(name).name == name


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_mnist_and_digits_carry_source_numbers(name: str) -> None:
    study = load_study(name)
    assert [study.source_numbers(cell.settings).get("mcs") for cell in study.cells()] == [0.248, None, 0.383, 0.447]


def test_cifar10_carries_source_numbers() -> None:
    study = load_study("cifar10")
    printed = {tuple(cell.settings.values()): study.source_numbers(cell.settings) for cell in study.cells()}
    assert len(printed) == 16
    assert printed[1, 2] == {"mcs": 0.63, "test_accuracy": 0.7233}
    assert printed[2, 4] == {"mcs": 0.683, "test_accuracy": 0.7757}
    assert printed[8, 5] == {"mcs": 0.791, "test_accuracy": 0.7595}


def test_load_study_reports_every_mistake_with_its_path(tmp_path: Path) -> None:
    bad = """
title = "bad"
sedes = 3
[data]
canvass = 40
[network]
pool_kernel = 9
[training]
learning_rate = -1
[grid]
network.factor = [1, 3]
"""
    with pytest.raises(InputError) as caught:
        load_study(write(tmp_path, bad))
    message = str(caught.value)
    assert "has 5 mistakes" in message
    for line in (
        "sedes: is not a known setting",
        "data.canvass: is not a known setting",
        "network.pool_kernel: must be at most 5, got 9",
        "training.learning_rate: must be above 0, got -1",
        "network.factor: `factor` must be 1, 2, 4 or 8, got 3. Choose one of them or give `strides` yourself.",
        "(at network.factor = 3)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = 1", "title: is missing"),
        ('title = "x"\nseeds = []', "seeds: `seeds` must be one or more different numbers"),
        ('title = "x"\nseeds = [1, 1]', "seeds: `seeds` must be one or more different numbers"),
        ('title = "x"\nname = "a/b"', "name: "),
        ('title = "x"\n[grid]\nnetwork.colour = [1]', "'network.colour' is not a setting that can vary"),
        (
            'title = "x"\n[grid]\nvariant = ["a"]',
            "'variant' is not a setting that can vary. Write its section (data, network, training, measure) and its name, like",
        ),
        ('title = "x"\n[grid]\nnetwork.factor = 4', "'network.factor' must be a list of one or more values, got 4"),
        ('title = "x"\n[grid]\nnetwork.factor = []', "must be a list of one or more values"),
        ('title = "x"\n[network]\nclasses = 3', "classes cannot be set, because the data determines them. Leave them out"),
        (
            'title = "x"\n[data]\ncanvas = 12\n[grid]\nnetwork.factor = [8]',
            "the map shrinks below the kernel",
        ),
        ('title = "x', "is not a TOML file"),
        ("a" + ".a" * 50_000 + " = 1", "has a key of over 100 parts"),
        ('title = "x"\ngrid = 3', "grid: `grid` must be a table"),
        ('title = "x"\nname = ".."', "name: "),
        ('title = "x"\n[measure]\nseed = 99999999999999999999999', "measure.seed: "),
        ('title = "x"\n[training]\nlearning_rate = inf', "training.learning_rate: "),
        ('title = "x"\n[source]\ntitle = "t"\n[[source.cells]]\nmcs = "abc"', "'mcs' must be a number, got 'abc'"),
        ('title = "x"\n[source]\ntitle = "t"\n[[source.cells]]\nmcs = nan', "'mcs' must be a number, got nan"),
        ('title = "x"\n[source]\ntitle = "t"\n[[source.cells]]\nmcs = true', "'mcs' must be a number, got True"),
        (
            'title = "x"\n[source]\ntitle = "t"\n[[source.cells]]\nnetwork.fctor = 1',
            "'network.fctor' is not a setting that can vary. Did you mean `network.factor`?",
        ),
        (
            'title = "x"\n[source]\ntitle = "t"\n[[source.claims]]\ntext = "c"\nof = { network.fctor = 1 }',
            "'network.fctor' is not a setting",
        ),
        (
            'title = "x"\n[source]\ntitle = "t"\n[[source.claims]]\ntext = "c"\nmeasure = "msc"',
            "source.claims.0.measure: 'msc' is not a known measure. Did you mean 'mcs'?",
        ),
        ('title = "x"\ndata = 3', "data: "),
        ('title = "x"\nvariants = 3', "`variants` must be tables of settings, got 3"),
        ('title = "x"\n[variants.a]\ndata.canvass = 3', "'data.canvass' is not a setting that can vary"),
        ('title = "x"\nseeds = 0', "seeds: `seeds` must be 1 to 10,000, got 0."),
        ('title = "x"\nseeds = "five"', "seeds: `seeds` must be a whole number or a list of them, got 'five'."),
        ('title = "x"\n[data]\ncanvas = "40"', "data.canvas: must be a number, got the text '40'. Write it without quotes."),
        ('title = "x"\n[network]\nchannels = 16', "network.channels: must be a list, got 16."),
        ('title = "x"\n[network]\nchannels = [4, true]', "network.channels: must be a number, got true."),
        ('title = "x"\n[grid]\nnetwork.factor = [1, 1]', "'network.factor' must be a list of different values, got [1, 1]."),
        ('title = "x"\n[grid]\nnetwork.factor = [true]', "network.factor: must be a number, got true."),
        ('title = "x"\n[grid]\ntraining.lr = [1]', "The settings of `training` are optimiser, learning_rate, "),
        ('title = "x"\n[grid]\nfactor = [1]', "'factor' is not a setting that can vary. Did you mean `network.factor`?"),
        ('title = "x"\nmeasure = 4', "measure: must be a table, got 4."),
        ('title = "x"\nmax_epochs = 4', "max_epochs: is not a known setting. Did you mean 'training.max_epochs'?"),
        ('title = "x"\n[data]\nmax_shift = 4', "data.max_shift: is not a known setting. Did you mean 'measure.max_shift'?"),
        ('title = "x"\n[network]\nchanels = 4', "network.chanels: is not a known setting. Did you mean 'channels'?"),
        ('title = "x"\n[[claims]]\ntext = "c"', "claims: is not a known setting. Did you mean 'source.claims'?"),
        ('title = "x"\n[[source.claims]]\ntxt = "c"', "source.claims.0.txt: is not a known setting. Did you mean 'text'?"),
        ('title = "x"\n[source]\ntitle = "t"\n[[source.cells]]\nmsc = 0.3', "'msc' is not a known measure. Did you mean 'mcs'"),
        (
            'title = "x"\n[variants.a]\nnetwork.factor = 4\n[grid]\nnetwork.factor = [1, 2]',
            "the variant 'a' sets 'network.factor', which the grid varies. Leave it out of one of them.",
        ),
        (
            'title = "x"\n[grid]\nnetwork.factor = [1]\n'
            "[[overrides]]\nof = { network.factor = 1 }\nsettings = { network.factor = 2 }",
            "an override sets 'network.factor', which the grid varies. Leave it out of one of them.",
        ),
        (
            'title = "x"\n[[overrides]]\nof = { network.factor = 1 }\nsettings = { training.batch_size = 2 }',
            "an override is of cells by 'network.factor', which the grid does not vary.",
        ),
        (
            'title = "x"\n[grid]\nnetwork.factor = [1]\n'
            "[[overrides]]\nof = { network.factor = 1 }\nsettings = { training.rate = 2 }",
            "'training.rate' is not a setting that can vary",
        ),
        (
            'title = "x"\n[grid]\nnetwork.factor = [1, 4]\n[[overrides]]\nof = { network.factor = 3 }\nsettings = {}',
            "has an override of network.factor = [3], and the grid has no such cell. Correct its `of`.",
        ),
        (
            'title = "x"\n[source]\ntitle = "y"\n[[source.cells]]\nnetwork.factor = 1\nmcs = 38.3',
            "source.cells: 'mcs' must be -1 to 1, got 38.3.",
        ),
        ('title = "x"\n[[overrides]]\nof = 3\nsettings = {}', "overrides.0.of: must be a table, got 3."),
        ('title = "x"\noverrides = 3', "overrides: must be a list, got 3."),
    ],
)
def test_load_study_mistake_names_setting_and_rule(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_study(write(tmp_path, text))
    assert message in str(caught.value)


def test_load_study_unknown_name_lists_known_ones() -> None:
    with pytest.raises(InputError, match=r"there is no study 'imagenet'. Choose one of .*digits.*mnist.*, or give the path"):
        load_study("imagenet")


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        ({"training.learning_rate": 0.02}, True),
        ({"data.train_images": 10_000}, True),
        ({"network.padding": "same"}, True),
        ({"network.channels": [4, 8, 8]}, False),
    ],
)
def test_change_stands_in_title_and_drops_numbers_of_other_networks(change: dict[str, object], compared: bool) -> None:
    study = load_study("mnist", changes=change)
    assert study.title == f"{load_study('mnist').title} ({next(f'{path} = {value}' for path, value in change.items())})"
    assert (study.source is not None) == compared


def test_choosing_cells_changes_no_title() -> None:
    assert load_study("mnist", changes={"network.factor": [4]}).title == load_study("mnist").title


def test_typo_in_a_section_has_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('title = "Mine"\n[training]\nmax_epoch = 3\n')
    with pytest.raises(InputError, match=r"training.max_epoch: is not a known setting. Did you mean 'max_epochs'"):
        load_study(str(tmp_path / "mine.toml"))


def test_every_setting_that_is_a_fraction_is_printed_with_all_its_digits() -> None:
    fields = {name: field.annotation for section in SECTIONS.values() for name, field in section.model_fields.items()}
    assert {name for name, annotation in fields.items() if "float" in str(annotation)} == FRACTIONS
