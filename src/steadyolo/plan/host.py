"""What a training process holds of a host's memory beside the tensors of its step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steadyolo.plan.memory import Kind, MemoryEstimate, Peak, Workload

_NANO_WEIGHTS = 3_000_000
_NANO_BYTES_PER_PIXEL = 1000  # of an input image, in fp32: twice what the smallest models of each family keep
_WIDTH_POWER = 0.8  # activations grow more slowly than weights
_BYTES_PER_WEIGHT = 32  # weights, gradients, EMA, two moments, and the copy that a save makes
_FIXED_BYTES = 2**30  # libraries, decoded images
# Tensors below 32 MiB come from the heap, which keeps what is freed and fills its gaps badly; larger ones are mapped.
# Both figures are fits to the resident peaks of three runs of yolov8n: 320 to 640 px, 8 and 16 images, bf16 and fp32.
_HEAP_SHARE = 0.6
_HEAP_BYTES = 1200 * 2**20
_PREFETCHED_BATCHES = 3  # of each worker: two that wait, one in the making


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSide:
    """A process as it is apart from its step: libraries that are loaded, and what loading and saving keep."""

    libraries_bytes: int
    num_samples: int
    num_workers: int
    num_window_images: int  # decoded images that mosaics choose from

    def added_to(self, estimate: MemoryEstimate, workload: Workload) -> MemoryEstimate:
        """The estimate of a step's tensors with the rest of the process: `context`, `input` and `overhead`."""
        image_bytes = 3 * workload.imgsz**2
        num_batch_images = workload.num_batch_images or workload.fit.num_images
        waiting = num_batch_images * (self.num_workers * _PREFETCHED_BATCHES or 1)
        held = estimate.training.by_kind
        saved = sum(held.get(kind, 0) for kind in ("weights", "optimizer", "ema"))
        more: dict[Kind, int] = {
            "context": self.libraries_bytes,
            "input": image_bytes * (min(self.num_window_images, self.num_samples) + waiting),
            "overhead": saved,  # the copy that a save writes from
        }
        return replace(estimate, training=_with(estimate.training, more), validation=_with(estimate.validation, more))


def _with(peak: Peak, more: dict[Kind, int]) -> Peak:
    passing = sum(peak.by_kind.get(kind, 0) for kind in ("activations", "loss", "workspace"))
    more = {**more, "overhead": more["overhead"] + int(_HEAP_SHARE * min(passing, _HEAP_BYTES))}
    by_kind = {kind: peak.by_kind.get(kind, 0) + more.get(kind, 0) for kind in {*peak.by_kind, *more}}
    return replace(peak, by_kind=by_kind)


def rough_step_bytes(*, num_weights: int, num_images: int, side_px: int) -> int:
    """What a training step on a host surely does not exceed, from nothing but sizes: to tell whether planning pays."""
    wide = max(1.0, num_weights / _NANO_WEIGHTS) ** _WIDTH_POWER
    activations = num_images * side_px**2 * wide * _NANO_BYTES_PER_PIXEL
    return int(_FIXED_BYTES + num_weights * _BYTES_PER_WEIGHT + activations)
