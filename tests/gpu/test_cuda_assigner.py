"""Assignment in pieces on a GPU: upstream's targets there, bit for bit, and bounded memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steadyolo.adapters.ultralytics import assigner as bounded
from tests.unit.adapters.ultralytics.test_assigner import KINDS, TOPKS, Case, are_same, in_pieces

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing about CUDA is shown"),
]

CROWDED = Case(num_images=3, num_boxes=300, side_px=256, box_share=0.5, odd=frozenset({"all full"}))


@pytest.mark.parametrize("odd", ["same boxes", "nothing overlaps", "no scores", "nan score"])
@pytest.mark.parametrize(("topk", "topk2"), TOPKS)
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_upstreams(
    kind: type, topk: int, topk2: int | None, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "ACCELERATOR_LIMITS", bounded.Limits(1 << 20, 0))
    case = replace(CROWDED, kind=kind, odd=CROWDED.odd | {odd})
    args, extra = case.call()
    args, extra = tuple(each.cuda() for each in args), {name: each.cuda() for name, each in extra.items()}
    plain, ours = case.assigner(topk, topk2), in_pieces(case.assigner(topk, topk2))
    for each in (plain, ours):
        if hasattr(each, "sigmas"):
            each.sigmas = each.sigmas.cuda()
    assert all(are_same(*both) for both in zip(plain(*args, **extra), ours(*args, **extra), strict=True))


def test_5000_boxes_in_an_image_take_megabytes() -> None:
    case = Case(num_images=1, num_boxes=5000, side_px=640, box_share=0.03, odd=frozenset({"all full"}))
    args = tuple(each.cuda() for each in case.call()[0])
    ours = in_pieces(case.assigner(10, None))
    ours(*args)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours(*args)
    assert torch.cuda.max_memory_allocated() - before < 128 << 20
