"""The registry of measures: what each is called, what it means, and how its values become an estimate.

Tables, pages, figures, claims, JSON and the command line read names, labels, bounds and estimators from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from shiftscope.estimates import Estimate, mean, mean_over_seeds, proportion, proportion_over_seeds

__all__ = ["MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """One number per image, how it is named, and how its values become an estimate.

    Attributes:
        name: short, as in CSV, JSON and specifications (``mcs``).
        label: a few words, as in column headings and figures.
        sentence: one sentence that defines it.
        bounds: the least and the greatest value of an image; infinite where it has no bound.
        better: whether a network that cares less where the object is has ``more`` or ``less`` of it; None where neither.
        share: whether each image's value is yes or no, so that the estimate is a share of images.
    """

    name: str
    label: str
    sentence: str
    bounds: tuple[float, float] = (0.0, 1.0)
    better: Literal["more", "less"] | None = "more"
    share: bool = False

    def estimate(self, values: Float[Tensor, " image"] | Bool[Tensor, " image"]) -> Estimate:
        """Return the estimate from one network's images."""
        return proportion(values.bool()) if self.share else mean(values.float(), bounds=self.bounds)

    def estimate_over_seeds(self, values: Float[Tensor, "seed image"] | Bool[Tensor, "seed image"]) -> Estimate:
        """Return the estimate from the same images of several trained networks."""
        if self.share:
            return proportion_over_seeds(values.bool())
        return mean_over_seeds(values.float(), bounds=self.bounds)


#: Every measure, by its short name. Tables, pages, figures, claims, JSON and the command line read from here.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("mcs", "mean cosine similarity", "Cosine of the outputs before and after a shift.", (-1.0, 1.0)),
        Measure(
            "mcs_centred",
            "centred cosine similarity",
            "Cosine of the outputs before and after a shift, after subtracting their mean over classes.",
            (-1.0, 1.0),
        ),
        Measure("mcs_all_shifts", "cosine similarity, every shift", "Mean cosine similarity over every shift.", (-1.0, 1.0)),
        Measure("top1_change", "top-1 change", "Share of shifts that change the top class.", better="less"),
        Measure(
            "probability_change",
            "change of probability",
            "Mean absolute change of the top class's probability under a shift.",
            better="less",
        ),
        Measure("pair_consistency", "pair consistency", "Share of pairs of shifts that agree on the top class."),
        Measure("pairs_agree", "pairs that agree", "Share of pairs of views of an image that agree on the top class."),
        Measure(
            "all_agree", "same class at every shift", "Share of images with one top class under all their shifts.", share=True
        ),
        Measure("worst_case", "correct at every shift", "Share of images classified correctly at every shift.", share=True),
        Measure(
            "test_accuracy", "test accuracy", "Share of unshifted test images classified correctly.", better=None, share=True
        ),
        Measure("train_accuracy", "train accuracy", "Share of training images classified correctly.", better=None, share=True),
        Measure("accuracy", "accuracy under shifts", "Share of shifted images classified correctly.", better=None),
        Measure("true_probability", "probability of the label", "Mean probability of the true class under shifts.", better=None),
        Measure(
            "neighbour_change",
            "top-1 change per pixel",
            "Share of neighbouring one-pixel shifts between which the top class changes.",
            better="less",
        ),
        Measure(
            "neighbour_probability_change",
            "change of probability per pixel",
            "Mean absolute change of the top class's probability between neighbouring one-pixel shifts.",
            better="less",
        ),
        Measure(
            "consistency_whole", "consistency, whole pixels", "Share of images whose top class survives the shift.", share=True
        ),
        Measure(
            "consistency_half", "consistency, half pixels", "Share of images whose top class survives the shift.", share=True
        ),
        Measure(
            "probability_change_whole",
            "change of probability, whole pixels",
            "Mean absolute change of the top class's probability under a shift by whole pixels.",
            better="less",
        ),
        Measure(
            "probability_change_half",
            "change of probability, half pixels",
            "Mean absolute change of the top class's probability under a shift by half pixels.",
            better="less",
        ),
        *(
            Measure(
                f"{power}_derivative_{axis}",
                f"{power} derivative along {axis}",
                f"Mean over classes of the {power} derivative of the softmax along {axis}.",
                (0.0, inf),
                better="less",
            )
            for power in ("squared", "absolute")
            for axis in ("y", "x")
        ),
        Measure("mASSC", "mean pixel agreement", "Share of pixels that keep their class when the shift is undone."),
        Measure(
            "similarity",
            "similarity",
            "Largest cosine between a feature map and its shifted counterpart, over all displacements.",
            (-1.0, 1.0),
        ),
        Measure(
            "movement", "movement", "Displacement at which that cosine is largest, in the map's positions.", (0.0, inf), None
        ),
        Measure("movement_in_pixels", "movement, pixels", "The same displacement in pixels of the image.", (0.0, inf), None),
        Measure("in_place", "similarity in place", "Cosine between the two maps without displacement.", (-1.0, 1.0)),
        Measure("homogeneity", "local homogeneity", "Similarity of neighbouring positions, at the stride.", (-1.0, 1.0), None),
        Measure(
            "homogeneity_pooled",
            "local homogeneity after pooling",
            "Similarity of neighbouring positions after the pooling window, at the stride.",
            (-1.0, 1.0),
            None,
        ),
    )
}
