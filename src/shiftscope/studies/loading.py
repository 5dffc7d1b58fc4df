"""Read studies: those that come with the package, a user's TOML files, and the study that a results folder holds."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shiftscope.errors import InputError, first_line, shortened
from shiftscope.runtime.inputs import is_file, is_folder, read_bytes, reading
from shiftscope.runtime.settings import Spec, described, validation_messages
from shiftscope.studies.sections import LONGEST_NAME, SECTIONS, VARIANT, check_path, flatten
from shiftscope.studies.spec import Source, Study

__all__ = ["load_study", "read_study", "shipped_studies"]

#: The tables of a study's file and what validates each.
KINDS: dict[str, type[Spec]] = {**SECTIONS, "source": Source}
#: Largest study file, bytes, and the most mistakes that an error lists.
LARGEST, LISTED = 1 << 20, 20
#: The most parts of a dotted key: the time to read one grows with their square. What cannot be in a key separates keys.
DEEPEST, NO_KEY = 100, re.compile(r"[^\w.\-\"' \t]")
#: The most characters of changed settings in a study's title.
LONGEST_CHANGES = 1000
#: Settings, beside those of training, that may differ from a publication's: how many images, not which; and what it
#: hardly ever states of its networks.
OPEN = (
    *(f"data.{name}" for name in ("train_images", "validation_images", "test_images", "split_seed", "background")),
    *(f"network.{name}" for name in ("normalise", "padding", "pool_padding", "strided")),
    *(f"measure.{name}" for name in ("seed", "every_shift_images")),
)


def shipped_studies() -> dict[str, Path]:
    """Return the studies that come with the package: name -> TOML file."""
    folder = Path(str(files("shiftscope.studies") / "paper"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_study(name: str, *, seeds: int | None = None, changes: Mapping[str, Any] | None = None) -> Study:
    """Return a study that comes with the package, or one from a TOML file, with every combination of its grid checked.

    Args:
        name: of a study in the package (``digits``, ``mnist``, ...), or the path of a TOML file.
        seeds: the number of networks to train for each cell, with seeds from 0; by default the file's seeds.
        changes: settings that replace the file's, ``{"data.train_images": 12000}``. If the grid varies the setting, the value,
            or each of a list of values, replaces the grid's values. ``variant`` selects variants.

    Raises:
        InputError: there is no such study, the file is not TOML, or it has mistakes; the message lists all mistakes, each with
            the path of its setting.

    >>> [cell.settings for cell in load_study("digits").cells()][:2]
    [{'network.factor': 1}, {'network.factor': 2}]
    """
    shipped = shipped_studies()
    path = shipped.get(name, Path(name))
    if not is_file(path):
        raise InputError(
            f"there is no study {shortened(name, LONGEST_NAME)!r}.",
            f"Choose one of {', '.join(shipped)}, or give the path of a TOML file.",
        )
    document = _document(path)
    document.setdefault("name", re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-") or "study")
    if seeds is not None:
        document["seeds"] = seeds
    study = _validated(document, str(path))  # what is changed must be a study
    _check_overrides(study, path)
    changed = {setting: value for setting, value in (changes or {}).items() if _change(document, setting, value)}
    study = _validated(document, str(path)) if changes else study
    return _with_changes(study, changed) if changed else study


def _check_overrides(study: Study, path: Path) -> None:
    """Refuse an override of no cell. Of a changed study, one may be of cells that the changes leave out."""
    combinations = study.combinations()
    for each in study.overrides:
        if not any(map(each.holds, combinations)):
            cells = ", ".join(f"{setting} = {described(list(values))}" for setting, values in each.of.items())
            raise InputError(f"{path} has an override of {cells}, and the grid has no such cell.", "Correct its `of`.")


def _document(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    with reading(path, "a TOML file", "See https://toml.io for the format."):
        try:
            text = read_bytes(path, limit=LARGEST).decode()
            if any(key.count(".") > DEEPEST for key in NO_KEY.split(text)):
                raise InputError(f"{path} has a key of over {DEEPEST} parts.", "See `shiftscope study --help` for its settings.")
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not a TOML file: {first_line(error)}.", "See https://toml.io for the format.") from error


def _with_changes(study: Study, changed: Mapping[str, Any]) -> Study:
    """Return the study with its changes in the title, without printed numbers of other images, networks or measurements.

    Settings that the publication does not state, such as the optimizer or the padding of convolutions, may differ.
    """
    listed = ", ".join(f"{path} = {value}" for path, value in changed.items())
    if len(listed) > LONGEST_CHANGES:
        raise InputError("`--set` gives values of over 1,000 characters.", "Write them in a TOML file.")
    comparable = all(path.startswith("training.") or path in OPEN for path in changed)
    title = f"{study.title} ({listed})"
    return study.model_copy(update={"title": title, "source": study.source if comparable else None})


def read_study(folder: Path) -> Study:
    """Return the study that a study's folder holds.

    Args:
        folder: of a study that `shiftscope study` has begun; its ``study.json`` is read.

    Raises:
        InputError: there is no ``study.json``, or it is not a study of this version.
    """
    path = folder / "study.json"
    remedy = "Run the study again with the same --out."
    if not path.exists():
        problem = f"{folder} holds no study." if is_folder(folder) else f"there is no folder {folder}."
        raise InputError(problem, "Give the folder that `shiftscope study` wrote, such as studies/digits.")
    with reading(path, "a study", remedy):
        try:
            study = Study.model_validate_json(read_bytes(path))
            study.cells()
        except ValidationError as error:
            raise InputError(f"{path} is not a study: {validation_messages(error)[0]}", remedy) from error
    return study


def _change(document: dict[str, Any], path: str, value: Any) -> bool:
    """Replace a setting in a study's document, in the section, grid, variants or overrides that set it.

    Returns:
        whether runs differ from the file's; not if only some of them are chosen.
    """
    values = value if isinstance(value, list) else [value]
    if path == VARIANT:
        document["variants"] = _chosen_variants(document.get("variants", {}), values)
        return False
    try:
        check_path(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    grid = flatten(document.get("grid", {}))
    if path in grid:
        document["grid"] = {**grid, path: values}
        return False
    variants = {name: flatten(bundle) for name, bundle in document.get("variants", {}).items()}
    document["variants"] = {
        name: {other: each for other, each in bundle.items() if other != path} for name, bundle in variants.items()
    }
    for override in document.get("overrides", ()):
        override["settings"] = {other: each for other, each in flatten(override["settings"]).items() if other != path}
    section, _, setting = path.partition(".")
    document[section] = {**document.get(section, {}), setting: value}
    return True


def _chosen_variants(known: Mapping[str, Any], names: list[Any]) -> dict[str, Any]:
    for name in names:
        if not isinstance(name, str) or name not in known:
            remedy = f"Choose one of {', '.join(known)}." if known else "This study has no variants."
            raise InputError(f"{described(name)} is not a variant of this study.", remedy)
    return {name: known[name] for name in names}


def _validated(document: dict[str, Any], where: str) -> Study:
    """Return the study, or raise one error with every mistake of the document and of each combination of its grid."""
    found: list[str] = []
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        found = validation_messages(error, KINDS)
        # Check what is left without the entries that are wrong, to report all mistakes at once.
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        rest = {name: value for name, value in document.items() if name not in wrong}
        with suppress(ValidationError):  # a mistake of the document as a whole
            study = Study.model_validate({"name": "study", "title": "", **rest})
            found += _mistakes_of_cells(study)
    else:
        found = _mistakes_of_cells(study)
    found = list(dict.fromkeys(found))
    if found:
        lines = "".join(f"\n  {line}" for line in [*found[:LISTED], *(["..."] if len(found) > LISTED else [])])
        raise InputError(f"{where} has {len(found)} mistake{'s' if len(found) > 1 else ''}:{lines}")
    return study


def _mistakes_of_cells(study: Study) -> list[str]:
    """Return the mistakes that show in the study's combinations, with the first combination for those not in all of them."""
    first: dict[str, dict[str, Any]] = {}
    count: Counter[str] = Counter()
    combinations = study.combinations()
    for settings in combinations:
        try:
            study.run(settings, study.seeds[0])
        except ValidationError as error:
            for line in validation_messages(error, KINDS):
                if not line.startswith("network.input_size"):  # `data.canvas` has the same mistake
                    first.setdefault(line, settings)
                    count[line] += 1
    places = {
        line: ", ".join(f"{path} = {described(value)}" for path, value in settings.items()) for line, settings in first.items()
    }
    return [line if count[line] == len(combinations) else f"{line} (at {places[line]})" for line in first]
