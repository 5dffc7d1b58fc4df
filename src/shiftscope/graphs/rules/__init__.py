"""What each operator does to the symmetry of its tensors: one function per family of operators.

A rule receives a :class:`~shiftscope.graphs.rules.call.Call` and returns the :class:`~shiftscope.graphs.symmetry.Symmetry` of
each result, or raises :class:`~shiftscope.graphs.rules.call.UnknownError` where it cannot say. Operators without a rule that act
on each value alone are :func:`~shiftscope.graphs.rules.values.pointwise`; torch decomposes those that are made of others;
everything else is unknown.
"""
