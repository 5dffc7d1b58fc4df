"""The registry of measures: what each is called, what it means, and how its values per image become an estimate.

Tables, pages, figures, claims, JSON and the command line read names, labels, bounds and estimators from here. A new measure is
one entry here and one function that computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from shiftscope.estimates import Estimate, mean, mean_over_seeds, proportion, proportion_over_seeds

__all__ = ["DEFINITIONS", "MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """One number per image, its names, and how its values become an estimate.

    Attributes:
        name: short, as in CSV, JSON and specifications (``mcs``).
        label: a few words, as in column headings and figures.
        sentence: a definition.
        bounds: the smallest and largest possible value of an image; infinite if there is no bound.
        better: ``more`` if an invariant network has the largest value, ``less`` if the smallest; None if neither.
        share: whether each image's value is 0 or 1, so that the estimate is a share of images.
    """

    name: str
    label: str
    sentence: str
    bounds: tuple[float, float] = (0.0, 1.0)
    better: Literal["more", "less"] | None = "more"
    share: bool = False

    def estimate(self, values: Float[Tensor, " image"] | Bool[Tensor, " image"]) -> Estimate:
        """Return the estimate from one network's images.

        >>> import torch
        >>> print(MEASURES["worst_case"].estimate(torch.tensor([1.0, 0.0, 1.0, 1.0])))
        0.750 [0.301, 0.954]
        """
        return proportion(values.bool()) if self.share else mean(values.float(), bounds=self.bounds)

    def estimate_over_seeds(self, values: Float[Tensor, "seed image"] | Bool[Tensor, "seed image"]) -> Estimate:
        """Return the estimate from the same images of several trained networks."""
        if self.share:
            return proportion_over_seeds(values.bool())
        return mean_over_seeds(values.float(), bounds=self.bounds)

    def as_change(self, values: Tensor) -> Tensor:
        """Return by how much answers change, from values of this measure: 1 less an agreement, or an error itself."""
        return 1 - values if self.better == "more" else values

    @property
    def change_bounds(self) -> tuple[float, float]:
        """The smallest and largest possible change."""
        low, high = self.bounds
        return (1 - high, 1 - low) if self.better == "more" else (low, high)


COSINE = (-1.0, 1.0)
LENGTH = (0.0, inf)
#: Every measure, in the order of this file.
DEFINITIONS = (
    # Outputs before and after a shift.
    Measure("mcs", "mean cosine similarity", "Cosine of the outputs before and after a shift.", COSINE),
    Measure(
        "mcs_centred",
        "centred cosine similarity",
        "Cosine of the outputs before and after a shift, each minus its mean over classes.",
        COSINE,
    ),
    Measure(
        "mcs_softmax",
        "cosine similarity after the softmax",
        "Cosine of the class probabilities before and after a shift.",
        (0.0, 1.0),
    ),
    Measure("mcs_all_shifts", "cosine similarity, every shift", "Mean cosine similarity over every shift of a grid.", COSINE),
    Measure("top1_change", "top-1 change", "Share of shifts that change the top class.", better="less"),
    Measure(
        "probability_change",
        "probability change",
        "Mean absolute change under a shift of the probability of the unshifted image's top class.",
        better="less",
    ),
    Measure("pair_consistency", "pair consistency", "Share of pairs of different shifts of an image with the same top class."),
    Measure("pairs_agree", "agreement of pairs", "Share of random pairs of shifts of an image with the same top class."),
    Measure("all_agree", "same class in all views", "Share of images with the same top class in all views of them.", share=True),
    Measure("worst_case", "correct at every shift", "Share of images classified correctly at every shift.", share=True),
    Measure(
        "certified_radius",
        "certified radius",
        "The largest r, pixels, such that every shift of up to r keeps the top class; -1 if the two top classes are equal.",
        (-1.0, inf),
    ),
    # Accuracy.
    Measure("test_accuracy", "test accuracy", "Share of unshifted test images classified correctly.", better=None, share=True),
    Measure("train_accuracy", "train accuracy", "Share of training images classified correctly.", better=None, share=True),
    Measure("accuracy", "accuracy", "Share of an image's views, shifted or not, that are classified correctly.", better=None),
    Measure("true_probability", "probability of the label", "Mean probability of the label under shifts.", better=None),
    # Along a path of shifts.
    Measure(
        "neighbour_change",
        "top-1 change per step",
        "Share of neighbouring shifts along a path between which the top class changes.",
        better="less",
    ),
    Measure(
        "neighbour_probability_change",
        "probability change per step",
        "Mean absolute change of the top class's probability between neighbouring shifts along a path.",
        better="less",
    ),
    # Whole and half pixels.
    *(
        measure
        for name, what in (("whole", "whole pixels"), ("half", "whole pixels and a half"))
        for measure in (
            Measure(
                f"consistency_{name}",
                f"consistency, {name} pixels",
                f"Share of images whose top class stays the same after a shift by {what}.",
                share=True,
            ),
            Measure(
                f"probability_change_{name}",
                f"probability change, {name} pixels",
                f"Absolute change of the probability of the unshifted image's top class after a shift by {what}.",
                better="less",
            ),
        )
    ),
    # Infinitesimal shifts.
    *(
        Measure(
            f"{power}_derivative_{axis}",
            f"{power} derivative along {axis}",
            f"Mean over classes of the {power} derivative of the probabilities with respect to a shift along {axis}.",
            LENGTH,
            better="less",
        )
        for power in ("squared", "absolute")
        for axis in ("y", "x")
    ),
    Measure(
        "normalised_variance",
        "normalised variance",
        "Spread of an output over shifts relative to its spread over images, a mean over outputs.",
        LENGTH,
        better="less",
    ),
    # Segmentation.
    Measure("mASSC", "mean pixel agreement", "Share of pixels that keep their class when the shift is undone."),
    Measure("mean_iou", "mean IoU", "Intersection over union of a class before a shift and moved back, a mean over classes."),
    Measure("boundary_agreement", "agreement at boundaries", "Pixel agreement where a neighbour has another class."),
    Measure("interior_agreement", "agreement inside", "Pixel agreement where all four neighbours have the same class."),
    Measure("truth_iou", "mean IoU with the truth", "Intersection over union with the ground truth, a mean over classes."),
    Measure("truth_pixels", "pixels right", "Share of pixels whose class is that of the ground truth."),
    # Depth and optical flow.
    Measure(
        "depth_error",
        "depth error",
        "Mean absolute change of a depth map that is moved back, relative to its mean absolute value.",
        LENGTH,
        better="less",
    ),
    Measure("depth_change", "depth change", "Mean absolute change of a depth map that is moved back.", LENGTH, better="less"),
    Measure(
        "depth_shape_error",
        "scale-invariant depth error",
        "Standard deviation of the log ratio of a depth map before a shift and moved back; only of positive maps.",
        LENGTH,
        better="less",
    ),
    Measure(
        "truth_depth_error",
        "depth error to the truth",
        "Mean absolute difference from the true depth, relative to its mean.",
        LENGTH,
        better="less",
    ),
    Measure(
        "truth_depth_shape_error",
        "scale-invariant error to the truth",
        "Standard deviation of the log ratio of a depth map and the true depth.",
        LENGTH,
        better="less",
    ),
    Measure(
        "endpoint_error",
        "endpoint error",
        "Mean distance, in pixels, of the flow's vectors before a shift and moved back.",
        LENGTH,
        better="less",
    ),
    Measure("flow_error", "flow error", "Endpoint error relative to the mean length of the vectors.", LENGTH, better="less"),
    Measure(
        "truth_endpoint_error",
        "endpoint error to the truth",
        "Mean distance, in pixels, of the flow's vectors from the true ones.",
        LENGTH,
        better="less",
    ),
    # Embeddings.
    Measure(
        "retrieval",
        "retrieval at 1",
        "Share of shifted images whose nearest unshifted image, of a block of up to 64, is the image itself.",
    ),
    Measure(
        "neighbour_rank",
        "rank of the true neighbour",
        "Rank of the image itself among a block's unshifted images, by their cosine with the shifted image; 1 is nearest.",
        (1.0, inf),
        better="less",
    ),
    # Labels that hold or not, and answers that are equal or not.
    Measure("label_flips", "label flips", "Share of labels that a shift moves across the threshold.", better="less"),
    Measure("label_set_change", "change of labels", "Share of shifts that change which labels hold.", better="less"),
    Measure(
        "label_probability_change",
        "change of label probability",
        "Mean absolute change of a label's probability under a shift.",
        better="less",
    ),
    Measure("labels_right", "labels right", "Share of labels that equal the ground truth."),
    Measure("same_answer", "same answer", "Share of shifts that do not change the answer."),
    Measure("answer_right", "answers right", "Share of answers that equal the ground truth."),
    Measure("value_change", "change of value", "Mean absolute change of the outputs, in their unit.", LENGTH, better="less"),
    Measure(
        "truth_value_error",
        "error to the truth",
        "Mean absolute difference of the outputs from the true values, in their unit.",
        LENGTH,
        better="less",
    ),
    # Object detection.
    Measure(
        "box_survival",
        "detections that survive",
        "Share of detections found again after a shift, with their class, moved back, at an IoU of `overlap` or more, by default "
        "0.5.",
    ),
    Measure(
        "confidence_change",
        "confidence change",
        "Mean absolute change of a detection's confidence under a shift; a detection not found again has confidence 0.",
        better="less",
    ),
    Measure(
        "worst_confidence_change",
        "worst confidence change",
        "Largest change of confidence among an image's detections, a mean over shifts.",
        better="less",
    ),
    *(
        Measure(
            f"confidence_change_{size}",
            f"confidence change, {size} objects",
            f"Confidence change of detections of {size} objects, {what}.",
            better="less",
        )
        for size, what in (("small", "below 32x32 pixels"), ("medium", "32x32 to 96x96"), ("large", "above 96x96 pixels"))
    ),
    Measure("box_iou", "IoU of boxes", "Mean intersection over union of surviving boxes before a shift and moved back."),
    Measure(
        "box_jitter",
        "box jitter, pixels",
        "Mean absolute change of the coordinates of surviving boxes, moved back, in pixels.",
        LENGTH,
        better="less",
    ),
    Measure("label_switches", "label switches", "Share of detections whose box stays and whose class changes.", better="less"),
    Measure(
        "box_deaths", "detections that vanish", "Share of detections that no detection of any class replaces.", better="less"
    ),
    Measure("box_births", "new detections", "Detections per image that appear where there were none.", LENGTH, better="less"),
    Measure("boxes_cut", "detections at the border", "Share of detections left out, because a border cuts them.", better=None),
    Measure(
        "objects_found",
        "objects found",
        "Share of the true objects that are found, at an IoU of `overlap` or more, by default 0.5.",
    ),
    Measure("ap", "average precision", "Average precision by COCO's definition, IoU 0.5 to 0.95, a mean over shifts."),
    Measure("ap_worst", "average precision, worst shift", "Smallest average precision over the shifts."),
    Measure("ap_range", "range of average precision", "Largest minus smallest average precision over the shifts.", better="less"),
    Measure("ap50", "average precision at IoU 0.5", "Average precision at an IoU of 0.5, a mean over shifts."),
    Measure("ap75", "average precision at IoU 0.75", "Average precision at an IoU of 0.75, a mean over shifts."),
    *(
        Measure(f"ap_{size}", f"average precision, {size} objects", f"Average precision of {size} objects, a mean over shifts.")
        for size in ("small", "medium", "large")
    ),
    # Keypoints.
    Measure(
        "keypoints_kept",
        "keypoints kept",
        "Share of visible points that are visible again, and within `near` of the longer side of their object's box, by default "
        "0.1, of where they were, moved back (PCK). No point of an object is kept that is not found again.",
    ),
    Measure(
        "keypoint_distance",
        "keypoint distance, pixels",
        "Mean distance of points, visible before and after a shift, from where they were, moved back, in pixels.",
        LENGTH,
        better="less",
    ),
    Measure(
        "keypoint_oks",
        "keypoint similarity (OKS)",
        "COCO's object keypoint similarity of points before a shift and moved back, with the area of the box.",
    ),
    Measure("visibility_flips", "visibility flips", "Share of points that become visible or cease to be.", better="less"),
    Measure(
        "pose_survival",
        "instances that survive",
        "Share of instances found again after a shift, with a box at an IoU of `overlap` or more, by default 0.5.",
    ),
    Measure(
        "truth_keypoints",
        "true keypoints found",
        "Share of the true points that are found within `near` of the longer side of their object's box, by default 0.1 (PCK).",
    ),
    Measure(
        "truth_keypoint_distance",
        "keypoint distance to the truth, pixels",
        "Mean distance of points from the true ones, in pixels.",
        LENGTH,
        better="less",
    ),
    Measure(
        "truth_keypoint_oks",
        "keypoint similarity to the truth (OKS)",
        "COCO's object keypoint similarity of points and the true ones, with the area of the box.",
    ),
    # Of any task.
    Measure(
        "flicker",
        "flicker",
        "Change of the answer from one position of a path to the next, moved back: 1 minus the agreement, or the error.",
        LENGTH,
        better="less",
    ),
    # Feature maps.
    *(
        measure
        for prefix, label, what in (("", "", "a feature map"), ("head_", " before the head", "the last feature map"))
        for measure in (
            Measure(
                f"{prefix}similarity",
                f"similarity{label}",
                f"Largest cosine over all displacements between {what} before and after a shift.",
                COSINE,
            ),
            Measure(
                f"{prefix}in_place",
                f"similarity in place{label}",
                f"Cosine between {what} before and after a shift, without displacement.",
                COSINE,
            ),
        )
    ),
    Measure(
        "movement", "movement", "Length of the displacement of largest cosine, in positions of the feature map.", LENGTH, None
    ),
    Measure("movement_in_pixels", "movement, pixels", "Length of the displacement of largest cosine, in pixels.", LENGTH, None),
    Measure(
        "head_movement",
        "movement before the head, pixels",
        "Length of the displacement of largest cosine of the last feature map, in pixels.",
        LENGTH,
        None,
    ),
    Measure(
        "homogeneity",
        "local homogeneity",
        "Mean cosine between the positions that subsampling keeps of a map and of its shifts by less than the stride.",
        COSINE,
        None,
    ),
    Measure(
        "homogeneity_pooled",
        "local homogeneity after pooling",
        "Local homogeneity of the map after the layer's pool or filter at stride 1.",
        COSINE,
        None,
    ),
)
#: The same by short name.
MEASURES: dict[str, Measure] = {measure.name: measure for measure in DEFINITIONS}
