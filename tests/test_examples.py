"""The example is the same network each time, draws nothing from the global random numbers, and knows digits in the middle."""

from __future__ import annotations

import torch

from shiftscope.examples import trained_digits


def test_example_is_reproducible_and_classifies_unseen_digits() -> None:
    numbers = torch.get_rng_state()
    (model, images, labels), (again, _, _), (other, _, _) = trained_digits(), trained_digits(), trained_digits(1)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(*pair) for pair in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(model[0].weight, other[0].weight)
    assert not model.training
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.8
