"""The literature's ways of measuring shift stability, as named values."""

from __future__ import annotations

from shiftscope.protocols.published import (
    GROUPS,
    PUBLISHED,
    azulay2018,
    chaman2021_circular,
    chaman2021_zero,
    every_shift,
    gruver2023,
    hendrycks2019,
    michaeli2023,
    mouton2020,
    myburgh2021,
    named,
    rojas2022_circular,
    rojas2022_crop,
    segmentation_circular,
    segmentation_zero,
    tmeasures,
    zhang2019,
    zhang2019_diagonal,
)
from shiftscope.protocols.scores import SCORES, Answers, MapAnswers, Score
from shiftscope.protocols.values import Border, Protocol

__all__ = [
    "GROUPS",
    "PUBLISHED",
    "SCORES",
    "Answers",
    "Border",
    "MapAnswers",
    "Protocol",
    "Score",
    "azulay2018",
    "chaman2021_circular",
    "chaman2021_zero",
    "every_shift",
    "gruver2023",
    "hendrycks2019",
    "michaeli2023",
    "mouton2020",
    "myburgh2021",
    "named",
    "rojas2022_circular",
    "rojas2022_crop",
    "segmentation_circular",
    "segmentation_zero",
    "tmeasures",
    "zhang2019",
    "zhang2019_diagonal",
]
