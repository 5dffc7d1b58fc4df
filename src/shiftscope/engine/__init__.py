"""Two ways to a model's outputs under shifts: ``direct`` runs the model on each copy, ``dense`` runs its operators once for all.

**The idea of dense.** A feature map of a shifted image holds nothing that a larger map of the unshifted image does not hold.
Let P be the image with its surroundings, so that the image shifted by d is the window of P that starts at o = -d. An operator
of stride s and kernel k that reads ``A[F i + o]`` (i the position in the window's own map, F the product of the strides
before it) gives ``A'[F s i + o]``, with ``A'[u] = op(A[u], A[u + F], ..., A[u + F (k - 1)])``: the same operator, at stride
1, with its taps F apart. So each operator runs once, dilated by F, and every window's map is read off in steps of F s. This
holds for convolution and pooling without padding. Under circular shifts it holds on the torus, and with circular padding too,
which then only moves the origin of the map.

**Implicit background.** Outside a box around the content, P is constant, and so is every later map. A sheet keeps its values
on the box as differences to that background, and the background as one value a channel. Differences are zero outside the box,
so zero padding is exact, and a convolution grows the box by F (k - 1).

**The head.** Global average pooling is a sum over a window in steps of F: two small matrix products. Flatten and a fully
connected layer are one correlation with the weights, F apart: by windows where they are small, by Fourier transform where
that is cheaper. What follows acts on each output vector alone.

**Proof by construction.** The model's traced graph is walked operator by operator. Each has a rule above, or the walk ends
with ``NotDenseError`` and its reason: zero padding, which reads zeros where the larger map has content; operators that are
not stationary or depend on the data; anything unknown. A comparison with direct on sampled shifts guards every use all the
same.
"""
