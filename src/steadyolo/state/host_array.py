"""NumPy's view of a tensor in host memory, for threads other than the training loop's.

torch computes on a pool of threads for each thread that asks. A second pool lasts as long as the process, and from then
on the processor has more of OpenMP's threads than cores: they no longer spin while they wait for each other, and every
operation of the training loop takes a third longer. So what runs beside the loop copies and converts through NumPy,
which works in the thread that asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def host_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The same memory, with the same shape and strides; bfloat16, which NumPy lacks, as 16-bit integers."""
    import torch

    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
