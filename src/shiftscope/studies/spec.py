"""Define studies: which networks to train, how to measure them, and what a publication printed about the same networks.

A *study* is a TOML file: settings for data, network, training and measurement, the seeds, and a ``[grid]`` of settings to vary
(``network.factor = [1, 2, 4, 8]``). A study expands into *cells*, one for each combination of the grid, and a cell into *runs*,
one for each seed. A run's specification holds everything that its numbers depend on except the content of its images; hashed
together with the images' checksum it is the run's content id.

A study may carry the numbers that a publication printed (``[[source.cells]]``) and its claims (``[[source.claims]]``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from hashlib import sha256
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from shiftscope.datasets.dataset import DataSpec
from shiftscope.measures import MEASURES
from shiftscope.models.family import NetworkSpec
from shiftscope.runtime.settings import Spec, Text, described
from shiftscope.studies.sections import DERIVED, LONGEST_NAME, SECTIONS, VARIANT, MeasureSpec, check_path, flatten
from shiftscope.training.recipe import Recipe

__all__ = [
    "SCHEMA",
    "Cell",
    "Claim",
    "Override",
    "Run",
    "Source",
    "Study",
    "frozen",
    "run_label",
    "short",
]

#: Part of every content id. Raise it if the same specification would train another network, or if a setting's default changes.
SCHEMA = 2
#: The most runs of a study, and the most values of a setting in a grid.
MOST_RUNS, MOST_VALUES = 10_000, 1000
#: A seed of a training; older studies may have negative ones.
AnySeed = Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Claim(Spec):
    """A statement about a study's cells, as a number that must lie above or below a bound.

    Attributes:
        text: the claim in words.
        measure: a name in :data:`shiftscope.measures.MEASURES`.
        kind: ``difference``: the mean of the measure over the cells ``of`` minus its mean over the cells ``less``, or minus 0
            if ``less`` is left out; ``range``: the largest minus the smallest value among the cells ``of``; ``lead``: the mean
            over the cells ``of`` minus the highest of the others among ``less``, which are all others if it is left out.
        of, less: which cells: setting -> the values that belong, as in ``{ "network.factor" = [2, 4] }``; settings that are not
            named may have any value.
        expect: the side of ``bound`` on which the number must lie.
        bound: the bound.
    """

    text: Text
    measure: str = "mcs"
    kind: Literal["difference", "range", "lead"] = "difference"
    of: dict[str, tuple[Any, ...]] = {}
    less: dict[str, tuple[Any, ...]] | None = None
    expect: Literal["above", "below"] = "above"
    bound: float = 0.0

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, measure: str) -> str:
        if measure not in MEASURES:
            raise ValueError(_unknown_measure(measure))
        return measure

    @field_validator("of", "less", mode="before")
    @classmethod
    def _selection(cls, cells: Any) -> Any:
        return _selected(cells)


class Override(Spec):
    """Settings that some cells have instead of the shared ones, such as a lower learning rate.

    Attributes:
        of: which cells: setting of the grid -> the values that belong, as in ``{ "network.factor" = [1, 2] }``.
        settings: path -> value.
    """

    of: dict[str, tuple[Any, ...]]
    settings: dict[str, Any]

    @field_validator("of", mode="before")
    @classmethod
    def _selection(cls, cells: Any) -> Any:
        return _selected(cells)

    @field_validator("settings", mode="before")
    @classmethod
    def _flat(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        flat = flatten(settings)
        for path in flat:
            check_path(path)
        return flat

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a cell with these settings is one of those."""
        return all(settings.get(path) in values for path, values in self.of.items())


class Source(Spec):
    """Numbers and claims that a publication printed.

    Attributes:
        title: the publication, and where in it.
        paper: authors, title and number of the paper.
        data: the data set of the printed numbers, where the study's is another; empty if it is the study's.
        cells: for each cell the grid's settings (``network.factor``) and the printed numbers, by measure (``mcs``).
        claims: the publication's claims about them.
    """

    title: Text
    paper: Text = ""
    data: Text = ""
    cells: tuple[dict[str, Any], ...] = Field((), max_length=MOST_RUNS)
    claims: tuple[Claim, ...] = Field((), max_length=MOST_VALUES)

    @field_validator("cells")
    @classmethod
    def _numbers(cls, cells: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        """Check that settings and measures exist, and that the measures' values are numbers."""
        for cell in cells:
            for name, value in flatten(cell).items():
                if "." in name:
                    check_path(name)
                elif name == VARIANT:
                    continue
                elif name not in MEASURES:
                    raise ValueError(_unknown_measure(name))
                elif isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) < value < 2**63:
                    raise ValueError(f"{described(name)} must be a number, got {described(value)}.")
                elif not MEASURES[name].bounds[0] <= value <= MEASURES[name].bounds[1]:
                    low, high = MEASURES[name].bounds
                    raise ValueError(f"{described(name)} must be {low:g} to {high:g}, got {described(value)}.")
        return cells


class Run(Spec):
    """Everything that one network's numbers depend on, except the content of its images."""

    data: DataSpec = DataSpec()
    network: NetworkSpec = NetworkSpec()
    training: Recipe = Recipe()
    measure: MeasureSpec = MeasureSpec()
    seed: AnySeed = 0

    def value(self, path: str) -> Any:
        """Return a setting's value; ``path`` is written like ``network.factor``."""
        section, _, setting = path.partition(".")
        return getattr(getattr(self, section), setting)

    def without_derived(self) -> Run:
        """Return the run without the settings that follow from its data, which a study does not know and a record does."""
        defaults = {name: NetworkSpec.model_fields[name].default for name in DERIVED}
        return self.model_copy(update={"network": self.network.model_copy(update=defaults)})

    def content_id(self, checksum: str) -> str:
        """Return twelve hexadecimal digits that change with the specification, the data's checksum or ``SCHEMA``.

        Settings at their defaults do not enter, so that a setting added later does not change the ids of finished runs. Whoever
        changes a default must therefore raise ``SCHEMA``.

        Args:
            checksum: of the run's images.
        """
        content = json.dumps([SCHEMA, checksum, self.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
        return sha256(content.encode()).hexdigest()[:12]


class Cell(Spec):
    """One combination of the grid's settings, and its runs, one for each seed."""

    settings: dict[str, Any]
    runs: tuple[Run, ...]


class Study(Spec):
    """A study as written; :meth:`cells` returns the validated specifications.

    Attributes:
        name: short, also the name of the study's folder.
        title: what the study shows, in one line.
        seeds: one trained network for each, in every cell; a plain number means that many seeds, from 0.
        data, network, training, measure: settings that all runs share; a setting that is left out has its default.
        variants: name -> settings that belong together (``data.name`` with its ``data.canvas``); the grid runs in each variant.
        grid: path of a setting (``network.factor``) -> the values it takes.
        overrides: settings of some cells, in order; they replace those that all runs share, and those of a variant.
        source: a publication's numbers and claims, to compare with.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100)
    title: Text
    seeds: tuple[AnySeed, ...] = Field((0, 1, 2), max_length=MOST_RUNS)
    data: dict[str, Any] = {}
    network: dict[str, Any] = {}
    training: dict[str, Any] = {}
    measure: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    overrides: tuple[Override, ...] = Field((), max_length=MOST_VALUES)
    source: Source | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_from_count(cls, seeds: Any) -> Any:
        """Turn a plain number into that many seeds, from 0."""
        if isinstance(seeds, list | tuple):
            return seeds
        if not isinstance(seeds, int) or isinstance(seeds, bool):
            raise ValueError(f"`seeds` must be a whole number or a list of them, got {described(seeds)}.")
        if not 1 <= seeds <= MOST_RUNS:
            raise ValueError(f"`seeds` must be 1 to {MOST_RUNS:,}, got {described(seeds)}.")
        return tuple(range(seeds))

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"`seeds` must be one or more different numbers, got {described(list(seeds))}.")
        return seeds

    @field_validator("grid", mode="before")
    @classmethod
    def _flat_grid(cls, grid: Any) -> Any:
        if not isinstance(grid, Mapping):
            raise ValueError(f"`grid` must be a table of settings and their values, got {described(grid)}.")
        axes = flatten(grid)
        for path, values in axes.items():
            check_path(path)
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{path!r} must be a list of one or more values, got {described(values)}.")
            if len(values) > MOST_VALUES:
                raise ValueError(f"{path!r} must have at most {MOST_VALUES:,} values, got {len(values):,}.")
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"{path!r} must be a list of different values, got {described(values)}.")
        return axes

    @field_validator("variants", mode="before")
    @classmethod
    def _flat_variants(cls, variants: Any) -> Any:
        if not isinstance(variants, Mapping) or not all(isinstance(bundle, Mapping) for bundle in variants.values()):
            raise ValueError(f"`variants` must be tables of settings, got {described(variants)}.")
        if len(variants) > MOST_VALUES:
            raise ValueError(f"`variants` must be at most {MOST_VALUES:,} tables of settings, got {len(variants):,}.")
        flat = {name: flatten(bundle) for name, bundle in variants.items()}
        for path in dict.fromkeys(path for bundle in flat.values() for path in bundle):
            check_path(path)
        return flat

    @field_validator("network")
    @classmethod
    def _no_derived_settings(cls, network: dict[str, Any]) -> dict[str, Any]:
        if given := [name for name in DERIVED if name in network]:
            raise ValueError(f"{', '.join(given)} cannot be set, because the data determines them. Leave them out.")
        return network

    @model_validator(mode="after")
    def _set_once(self) -> Study:
        for name, bundle in self.variants.items():
            if both := [path for path in bundle if path in self.grid]:
                raise ValueError(
                    f"the variant {described(name)} sets {both[0]!r}, which the grid varies. Leave it out of one of them."
                )
        return self

    @model_validator(mode="after")
    def _overrides_of_cells(self) -> Study:
        for each in self.overrides:
            if both := [path for path in each.settings if path in self.grid]:
                raise ValueError(f"an override sets {both[0]!r}, which the grid varies. Leave it out of one of them.")
            if unknown := [path for path in each.of if path not in self.axes()]:
                raise ValueError(f"an override is of cells by {described(unknown[0])}, which the grid does not vary.")
        return self

    @model_validator(mode="after")
    def _not_too_many(self) -> Study:
        runs = prod(map(len, self.axes().values())) * len(self.seeds)
        if runs > MOST_RUNS:
            raise ValueError(
                f"the study would have {runs:,} runs, of at most {MOST_RUNS:,}. Use fewer seeds or values in its grid."
            )
        return self

    def combinations(self) -> list[dict[str, Any]]:
        """Return every cell's settings in the order of the study: variant by variant, the grid's last setting varying fastest."""
        axes = self.axes()
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return each axis with its values: the variant, if the study has variants, then the grid's settings."""
        return ({VARIANT: tuple(self.variants)} if self.variants else {}) | self.grid

    def varied(self) -> tuple[str, ...]:
        """Return the paths of the settings that differ between cells."""
        return tuple(path for path, values in self.axes().items() if len(values) > 1)

    def cells(self) -> tuple[Cell, ...]:
        """Return a cell for each combination.

        Raises:
            ValidationError: a combination is impossible; :func:`shiftscope.studies.loading.load_study` refuses such a study.
        """
        return tuple(
            Cell(settings=settings, runs=tuple(self.run(settings, seed) for seed in self.seeds))
            for settings in self.combinations()
        )

    def run(self, settings: Mapping[str, Any], seed: int) -> Run:
        """Return the run of a combination and a seed.

        Args:
            settings: one of :meth:`combinations`; its settings replace the shared ones, and those of its variant.
            seed: of the weights, the order of images, and everything else that is random in a training.
        """
        merged = {section: dict(getattr(self, section)) for section in SECTIONS}
        varied = {path: value for path, value in settings.items() if path != VARIANT}
        for path, value in {**self.variants.get(settings.get(VARIANT, ""), {}), **self.overridden(settings), **varied}.items():
            section, _, setting = path.partition(".")
            merged[section][setting] = value
        merged["network"]["input_size"] = merged["data"].get("canvas", DataSpec().canvas)
        return Run.model_validate({**merged, "seed": seed})

    def overridden(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what overrides set in a combination, by path; of several the last one's value."""
        return {path: value for each in self.overrides if each.holds(settings) for path, value in each.settings.items()}

    @property
    def compares_variants(self) -> bool:
        """Whether several variants are compared with the same printed numbers, on the same data."""
        if self.source is None or self.source_elsewhere or len(self.variants) < 2:
            return False
        return bool(self.source.cells) and not any(VARIANT in cell for cell in self.source.cells)

    @property
    def source_elsewhere(self) -> str:
        """The data set of the source's numbers, where the study's is another; empty if it is the same."""
        return "" if self.source is None else self.source.data

    def source_numbers(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """Return the source's numbers for a combination, by measure; empty if the source printed none.

        Printed cells that name no variant are compared with every variant.
        """
        if self.source is None:
            return {}
        run = self.run(settings, self.seeds[0])
        numbers: dict[str, float] = {}
        for cell in map(flatten, self.source.cells):
            shared = {path: run.value(path) for path in cell if _is_path(path) and path != VARIANT and path not in settings}
            varied = {path: value for path, value in settings.items() if path != VARIANT or path in cell}
            if all(frozen(cell.get(path)) == frozen(value) for path, value in {**shared, **varied}.items()):
                numbers |= {name: value for name, value in cell.items() if not _is_path(name)}
        return numbers


def frozen(value: Any) -> Any:
    """Return a value in which lists are tuples, because files give lists and settings hold tuples.

    >>> frozen([4, [8]]) == frozen((4, (8,)))
    True
    """
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def _selected(cells: Any) -> Any:
    """Return a selection of cells with a list of values for each setting."""
    if not isinstance(cells, Mapping):
        return cells
    paths = flatten(cells)
    for path in paths:
        if path != VARIANT:
            check_path(path)
    return {path: values if isinstance(values, list | tuple) else (values,) for path, values in paths.items()}


def _is_path(name: str) -> bool:
    """Return whether a name in a source's cell is that of a setting; otherwise it is that of a measure."""
    return "." in name or name == VARIANT


def _unknown_measure(name: str) -> str:
    close = get_close_matches(name[:LONGEST_NAME], MEASURES, n=2)
    remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Choose one of {', '.join(MEASURES)}."
    return f"{described(name)} is not a known measure. {remedy}"


def short(path: str) -> str:
    """Return a setting's name without its section.

    >>> short("network.factor")
    'factor'
    """
    return path.rpartition(".")[2]


def run_label(settings: Mapping[str, Any], seed: int) -> str:
    """Return a readable label of a run. A setting whose short name another has, or the seed, keeps its path.

    Args:
        settings: those that vary in its study, by path.
        seed: the run's seed.

    >>> run_label({"network.factor": 8}, 0)
    'factor=8,seed=0'
    """
    names = Counter([*map(short, settings), "seed"])
    parts = [f"{short(path) if names[short(path)] == 1 else path}={value}" for path, value in settings.items()]
    return ",".join([*parts, f"seed={seed}"])
