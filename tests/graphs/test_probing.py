"""Looking at a model leaves it as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shiftscope.graphs.probing import restoring
from shiftscope.models.spec import Fix
from zoo import importable


class Capturing(nn.Module):
    """Adds hooks in its first call, as models of transformers do, and says so in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.captured: list[Tensor] = []
        self.installed = False

    def forward(self, batch: Tensor) -> Tensor:
        if not self.installed:
            self.layer.register_forward_hook(lambda _, __, output: self.captured.append(output))
            self.installed = True
        self.captured.clear()
        found: Tensor = self.layer(batch)
        return found


def test_hooks_of_a_first_call_go_with_the_attribute_that_counts_them() -> None:
    model = Capturing()
    for _ in range(2):
        with restoring(model):
            model(torch.ones(1, 2))
    assert (len(model.layer._forward_hooks), model.installed) == (0, False)
    model(torch.ones(1, 2))
    assert len(model.captured) == 1


def test_fix_of_a_transformer_that_never_ran_equals_that_of_one_that_ran() -> None:
    transformers = importable("transformers", "transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_labels=6,
        initializer_range=0.5,
    )
    images, outputs = torch.rand(2, 3, 64, 64), []
    for ran in (True, False):
        torch.manual_seed(0)
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        with torch.no_grad():
            plain = model(images).logits if ran else None
            # A file's fixes are applied to a model that was just made.
            fixed = Fix(kind="blur", filter_size=3).apply(model, image=(3, 64, 64) if ran else None).model
            outputs.append(fixed(images).logits)
            if plain is not None:
                torch.testing.assert_close(model(images).logits, plain)
                assert not torch.allclose(outputs[0], plain, atol=1e-3)
    torch.testing.assert_close(*outputs)
