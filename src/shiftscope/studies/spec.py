"""Studies: what to train and measure, as validated values. Nothing here trains or measures.

A *study* is a TOML file: settings for data, network, training and measuring, the seeds, and a ``[grid]`` of settings to vary
(``network.factor = [1, 2, 4, 8]``). It expands into *cells*, one a combination, and each cell into one *run* a seed. A
run's specification is everything its numbers depend on; hashed with the checksum of its data it is the run's content id.

A study may carry a source's printed numbers (``[[source.cells]]``), to be shown beside its own.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from shiftscope.datasets.dataset import DataSpec
from shiftscope.errors import InputError
from shiftscope.models.family import NetworkSpec
from shiftscope.runtime.settings import Spec, mistakes
from shiftscope.training.loop import Recipe

__all__ = ["Cell", "Claim", "MeasureSpec", "Run", "Source", "Study", "load_study", "read_study", "shipped_studies"]

#: Changes whenever the same specification would train another network, or a setting's default changes.
SCHEMA = 2
#: The setting that says which variant a cell belongs to.
VARIANT = "variant"
#: Settings of the network that follow from the data.
DERIVED = ("input_size", "input_channels", "classes")


class MeasureSpec(Spec):
    """How the trained networks are measured.

    Attributes:
        protocol: the literature's way.
        max_shift: the largest shift along an axis, pixels; the canvas must leave this margin around the image.
        seed: draws the shifts.
    """

    protocol: Literal["mouton2020"] = "mouton2020"
    max_shift: int = Field(8, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)


class Claim(Spec):
    """Something that is said about a study's cells, as a number that must lie above or below a bound.

    Attributes:
        text: the claim in words.
        measure: what it is about.
        kind: ``difference``: the mean over the cells of ``of`` less the mean over those of ``less`` (0 where that is left out);
            ``range``: the largest less the smallest cell of ``of``.
        of, less: which cells: setting -> the values that belong, all others in; ``{ "network.factor" = [2, 4] }``.
        expect: on which side of ``bound`` the number must lie.
        bound: the bound.
    """

    text: str
    measure: str = "mcs"
    kind: Literal["difference", "range"] = "difference"
    of: dict[str, tuple[Any, ...]] = {}
    less: dict[str, tuple[Any, ...]] | None = None
    expect: Literal["above", "below"] = "above"
    bound: float = 0.0

    @field_validator("of", "less", mode="before")
    @classmethod
    def _selected(cls, cells: Any) -> Any:
        if not isinstance(cells, Mapping):
            return cells
        paths = flat(cells)
        for path in paths:
            if path != VARIANT:
                _check_path(path)
        return {path: values if isinstance(values, list | tuple) else (values,) for path, values in paths.items()}


class Source(Spec):
    """Printed numbers and claims to show beside ours.

    Attributes:
        title: who printed them and where.
        cells: each with the grid settings it belongs to and the numbers, by measure.
        claims: what is said about them.
    """

    title: str
    cells: tuple[dict[str, Any], ...] = ()
    claims: tuple[Claim, ...] = ()

    @field_validator("cells")
    @classmethod
    def _numbers(cls, cells: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        """A path is a setting, all else a measure, which is a number."""
        for cell in cells:
            for name, value in flat(cell).items():
                if "." in name:
                    _check_path(name)
                elif name == VARIANT:
                    continue
                elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                    raise ValueError(f"{name!r} must be a number, got {value!r}.")
        return cells


class Run(Spec):
    """Everything one trained and measured network depends on, its data's content apart."""

    data: DataSpec = DataSpec()
    network: NetworkSpec = NetworkSpec()
    training: Recipe = Recipe()
    measure: MeasureSpec = MeasureSpec()
    seed: int = 0

    def at(self, path: str) -> Any:
        """A setting's value; ``path``: ``network.factor``."""
        part, _, setting = path.partition(".")
        return getattr(getattr(self, part), setting)

    def content_id(self, checksum: str) -> str:
        """Twelve hexadecimal digits that change with the specification, the data's checksum or the code's SCHEMA.

        Settings at their defaults do not enter, so that a setting added later leaves the ids of finished runs as they are. A
        default that changes must therefore raise SCHEMA.
        """
        content = json.dumps([SCHEMA, checksum, self.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
        return sha256(content.encode()).hexdigest()[:12]


#: The tables of a study and what validates them.
PARTS: dict[str, type[Spec]] = {"data": DataSpec, "network": NetworkSpec, "training": Recipe, "measure": MeasureSpec}


class Cell(Spec):
    """One combination of the grid's settings and its runs, one a seed."""

    settings: dict[str, Any]
    runs: tuple[Run, ...]


class Study(Spec):
    """A whole study, as written; :meth:`cells` gives the validated specifications.

    Attributes:
        name: short, also the name of its folder.
        title: what it shows, in one line.
        seeds: of the trained networks.
        data, network, training, measure: settings that all runs share; what is left out has the specification's default.
        variants: name -> settings that belong together (``data.name`` with its ``data.canvas``); the grid runs in each.
        grid: path of a setting (``network.factor``) -> the values it takes.
        source: printed numbers to stand beside.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    title: str
    seeds: tuple[int, ...] = (0, 1, 2)
    data: dict[str, Any] = {}
    network: dict[str, Any] = {}
    training: dict[str, Any] = {}
    measure: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    source: Source | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, seeds: Any) -> Any:
        """A plain number means so many seeds, from 0."""
        return tuple(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"`seeds` must be one or more different numbers, got {list(seeds)}.")
        return seeds

    @field_validator("grid", mode="before")
    @classmethod
    def _axes(cls, grid: Any) -> Any:
        if not isinstance(grid, Mapping):
            raise ValueError(f"`grid` must be a table of settings and their values, got {grid!r}.")
        axes = flat(grid)
        for path, values in axes.items():
            _check_path(path)
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{path!r} must be a list of one or more values, got {values!r}.")
        return axes

    @field_validator("variants", mode="before")
    @classmethod
    def _bundles(cls, variants: Any) -> Any:
        if not isinstance(variants, Mapping) or not all(isinstance(bundle, Mapping) for bundle in variants.values()):
            raise ValueError(f"`variants` must be tables of settings, got {variants!r}.")
        bundles = {name: flat(bundle) for name, bundle in variants.items()}
        for path in {path: None for bundle in bundles.values() for path in bundle}:
            _check_path(path)
        return bundles

    @field_validator("network")
    @classmethod
    def _nothing_derived(cls, network: dict[str, Any]) -> dict[str, Any]:
        if given := [name for name in DERIVED if name in network]:
            raise ValueError(f"{', '.join(given)} follow from the data. Leave them out.")
        return network

    def combinations(self) -> list[dict[str, Any]]:
        """The combinations in the order they are written: variant by variant, the grid's last setting varying fastest."""
        axes = self.axes()
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """What varies, and over which values: the variant where there are several, then the grid."""
        return ({VARIANT: tuple(self.variants)} if self.variants else {}) | self.grid

    def varied(self) -> tuple[str, ...]:
        """The paths of the settings that cells differ in."""
        return tuple(path for path, values in self.axes().items() if len(values) > 1)

    def cells(self) -> tuple[Cell, ...]:
        """A cell for each combination.

        Raises:
            ValidationError: a combination is impossible; :func:`load_study` has made sure that none is.
        """
        return tuple(
            Cell(settings=settings, runs=tuple(self.run(settings, seed) for seed in self.seeds))
            for settings in self.combinations()
        )

    def run(self, settings: Mapping[str, Any], seed: int) -> Run:
        """One run: the shared settings, a combination's put in, and the network's input size taken from the canvas."""
        merged = {part: dict(getattr(self, part)) for part in PARTS}
        varied = {path: value for path, value in settings.items() if path != VARIANT}
        for path, value in {**self.variants.get(settings.get(VARIANT, ""), {}), **varied}.items():
            part, _, setting = path.partition(".")
            merged[part][setting] = value
        merged["network"]["input_size"] = merged["data"].get("canvas", DataSpec().canvas)
        return Run.model_validate({**merged, "seed": seed})

    def printed(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """The source's numbers for a combination, by measure; empty where it has none."""
        if self.source is None:
            return {}
        run = self.run(settings, self.seeds[0])
        numbers: dict[str, float] = {}
        for cell in map(flat, self.source.cells):
            shared = {path: run.at(path) for path in cell if _is_path(path) and path != VARIANT and path not in settings}
            if all(cell.get(path) == value for path, value in {**shared, **settings}.items()):
                numbers |= {name: value for name, value in cell.items() if not _is_path(name)}
        return numbers


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted paths: ``{"network": {"factor": 1}}`` -> ``{"network.factor": 1}``."""
    paths: dict[str, Any] = {}
    for name, value in dict(nested).items():
        paths |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return paths


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, name -> file."""
    folder = Path(str(files("shiftscope.studies") / "paper"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_study(name: str, *, seeds: int | None = None, changes: Mapping[str, Any] | None = None) -> Study:
    """A shipped study by name or one of the user's by path, checked to the last combination of its grid.

    Args:
        name: ``digits``, ``mnist``, ..., or the path of a TOML file.
        seeds: so many seeds, from 0, instead of the file's.
        changes: settings to take instead of the file's, ``data.train_images`` -> 12000; where the grid varies the setting, or
            the variants do, a value or a list of values.

    Raises:
        InputError: no such study, not TOML, or mistakes in it; all of them are told at once, each with its path.

    >>> [cell.settings for cell in load_study("digits").cells()][:2]
    [{'network.factor': 1}, {'network.factor': 2}]
    """
    shipped = shipped_studies()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise InputError(f"there is no study {name!r}. Choose one of {', '.join(shipped)}, or give the path of a TOML file.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file: {error}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    document.setdefault("name", re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-") or "study")
    if seeds is not None:
        document["seeds"] = seeds
    for setting, value in (changes or {}).items():
        _change(document, setting, value)
    return _validated(document, str(path))


def read_study(folder: Path) -> Study:
    """Return the study that a study's folder holds.

    Args:
        folder: of a study that `shiftscope study` has begun; its ``study.json`` is read.

    Raises:
        InputError: there is no ``study.json``, or it is not a study of this version.
    """
    path = folder / "study.json"
    try:
        study = Study.model_validate_json(path.read_bytes())
        study.cells()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), so {folder} is not the folder of a study.",
            "Give the folder that `shiftscope study` wrote, such as studies/digits.",
        ) from error
    except ValidationError as error:
        raise InputError(f"{path} is not a study: {mistakes(error)[0]}") from error
    return study


def _change(document: dict[str, Any], path: str, value: Any) -> None:
    """Put a setting into a study's document, where it would otherwise be set."""
    values = value if isinstance(value, list) else [value]
    if path == VARIANT:
        known = document.get("variants", {})
        if missing := [name for name in values if name not in known]:
            raise InputError(f"{missing[0]!r} is no variant of this study. Choose one of {', '.join(map(str, known)) or 'none'}.")
        document["variants"] = {name: known[name] for name in values}
        return
    try:
        _check_path(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    grid = flat(document.get("grid", {}))
    if path in grid:
        document["grid"] = {**grid, path: values}
        return
    bundles = {name: flat(bundle) for name, bundle in document.get("variants", {}).items()}
    document["variants"] = {name: {key: kept for key, kept in bundle.items() if key != path} for name, bundle in bundles.items()}
    part, _, setting = path.partition(".")
    document[part] = {**document.get(part, {}), setting: value}


def _validated(document: dict[str, Any], where: str) -> Study:
    """The study, or one error with every mistake of the document and of each combination of its grid."""
    found: dict[str, None] = {}
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        found |= dict.fromkeys(mistakes(error))
        # What is sound can still be checked for more.
        unsound = {str(item["loc"][0]) for item in error.errors()}
        sound = {name: value for name, value in document.items() if name not in unsound}
        study = Study.model_validate({"name": "study", "title": "", **sound})
    seen: dict[str, list[dict[str, Any]]] = {}
    combinations = study.combinations()
    for settings in combinations:
        try:
            study.run(settings, study.seeds[0])
        except ValidationError as error:
            for line in mistakes(error):
                if line.startswith("network.input_size"):
                    continue  # the canvas's mistake, told there
                seen.setdefault(line, []).append(settings)
    for line, at in seen.items():
        first = ", ".join(f"{path} = {value!r}" for path, value in at[0].items())
        found[line if len(at) == len(combinations) else f"{line} (at {first})"] = None
    if found:
        told = "".join(f"\n  {line}" for line in found)
        raise InputError(f"{where} has {len(found)} mistake{'s' if len(found) > 1 else ''}:{told}")
    return study


def _is_path(name: str) -> bool:
    """Whether a name in a source's cell is a setting's; else it is a measure's."""
    return "." in name or name == VARIANT


def _check_path(path: str) -> None:
    part, _, setting = path.partition(".")
    kind = PARTS.get(part)
    if kind is None or setting not in kind.model_fields or setting in DERIVED:
        raise ValueError(f"{path!r} names no setting that can vary. Write it like `network.factor`.")


def short(path: str) -> str:
    """A setting's name without the part it belongs to.

    >>> short("network.factor")
    'factor'
    """
    return path.rpartition(".")[2]
