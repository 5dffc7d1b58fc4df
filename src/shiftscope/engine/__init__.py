"""A model's outputs under shifts: ``direct`` runs the model on each copy, ``dense`` runs each operator once for all shifts.

**The idea of dense.** A feature map of a shifted image is a window of a larger map of the unshifted image. Let P be the image
with its surroundings, so that the image shifted by d is the window of P that starts at o = -d. An operator of stride s and
kernel k that reads ``A[F i + o]`` (i the position in the window's own map, F the product of the strides before it) gives
``A'[F s i + o]``, with ``A'[u] = op(A[u], A[u + F], ..., A[u + F (k - 1)])``: the same operator, at stride 1, with its taps F
apart. So each operator runs once, dilated by F, and every window's map is read off in steps of F s. This holds for convolution
and pooling without padding. Under circular shifts it holds on the torus, and for circular padding too, which then only moves
the origin of the map.

**Implicit background.** Outside a box around the content, P is constant, and so is every later map. A sheet stores its values on
the box as differences from that background, and the background as one value per channel. Differences are zero outside the box, so
zero padding of the differences is exact, and a convolution grows the box by F (k - 1).

**The head.** Global average pooling is a sum over a window in steps of F: two small matrix products. Flatten and a fully
connected layer are one correlation with the weights, F apart: by convolution where they are small, by Fourier transform where
that is cheaper. Later layers act on each output vector alone.

**Exact, or not used.** The model's traced graph is walked operator by operator. Each has a rule as above, or the walk ends with
``NotDenseError`` and the reason: zero padding, which reads zeros where the larger map has content; operators that are not
stationary or depend on the data; anything unknown. Each use is also compared with direct on sampled shifts.
"""
