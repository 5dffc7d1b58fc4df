"""The rule of each operator, by its name."""

from __future__ import annotations

from shiftscope.graphs.rules import products, shapes, values, windows
from shiftscope.graphs.rules.call import Rule

__all__ = ["READS", "RULES"]


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: Operators whose result, a Python value or a tensor of a size that depends on values, lets code see values of a tensor. Most
#: others have a tag of torch.
READS = frozenset(
    {
        "item",
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "nms",
    }
)
#: Rule of each operator, by its name without overload and without a final underscore.
RULES: dict[str, Rule] = {
    **_named(
        values.unchanged,
        "detach alias clone contiguous to _to_copy lift_fresh lift resolve_conj resolve_neg positive",
    ),
    **_named(values.uniform, "zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like zero scalar_tensor"),
    **_named(values.filled, "fill"),
    **_named(values.uninitialised, "empty new_empty empty_like new_empty_strided empty_strided"),
    **_named(
        values.reduction, "sum mean amax amin prod var std logsumexp norm linalg_vector_norm all any nansum nanmean count_nonzero"
    ),
    **_named(values.extremum, "max min"),
    **_named(values.argument_of_extremum, "argmax argmin"),
    **_named(values.softmax, "softmax log_softmax _softmax _log_softmax"),
    **_named(values.ordered, "sort topk"),
    **_named(values.order_statistic, "median nanmedian kthvalue mode"),
    **_named(values.cumulative, "cumsum cumprod cummax cummin logcumsumexp"),
    **_named(products.matrix_product, "mm bmm matmul mv"),
    **_named(products.linear, "linear"),
    **_named(products.added_product, "addmm baddbmm"),
    **_named(products.attention, "scaled_dot_product_attention"),
    **_named(windows.convolution, "conv1d conv2d conv3d"),
    **_named(windows.transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(windows.pool, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
    **_named(windows.with_indices(windows.pool), "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"),
    **_named(windows.adaptive_pool, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_named(windows.with_indices(windows.adaptive_pool), "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_named(values.batch_norm, "batch_norm"),
    **_named(values.instance_norm, "instance_norm"),
    **_named(values.group_norm, "group_norm"),
    **_named(values.layer_norm, "layer_norm rms_norm"),
    **_named(values.prelu, "prelu _prelu_kernel"),
    **_named(shapes.permuted, "permute"),
    **_named(shapes.transposed, "transpose t swapaxes swapdims"),
    **_named(shapes.unsqueezed, "unsqueeze"),
    **_named(shapes.squeezed, "squeeze"),
    **_named(shapes.reshaped, "view reshape _unsafe_view flatten unflatten _reshape_alias"),
    **_named(shapes.expanded, "expand"),
    **_named(shapes.repeated, "repeat"),
    **_named(shapes.selected, "select"),
    **_named(shapes.sliced, "slice"),
    **_named(shapes.split, "split chunk split_with_sizes"),
    **_named(shapes.unbound, "unbind"),
    **_named(shapes.concatenated, "cat"),
    **_named(shapes.stacked, "stack"),
    **_named(shapes.flipped, "flip"),
    **_named(shapes.rolled, "roll"),
    **_named(shapes.padded, "pad"),
    **_named(windows.nearest, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **_named(windows.pixel_shuffle, "pixel_shuffle"),
    **_named(windows.pixel_unshuffle, "pixel_unshuffle"),
    **_named(windows.im2col, "im2col"),
    **_named(windows.unfolded, "unfold"),
    **_named(shapes.gathered, "gather"),
    **_named(shapes.looked_up, "embedding index_select"),
    **_named(values.gated, "glu"),
    **_named(values.copied, "copy"),
    **_named(values.dropout, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    **_named(
        values.pointwise, "hardswish softplus log_sigmoid where rsub divide multiply subtract softshrink rrelu floor_divide"
    ),
}
