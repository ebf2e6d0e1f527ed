"""What makes two runs the same run: the digests of their last state, and what they measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from steadyolo.errors import UserError
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.files import OURS_FOLDER


def run_identity(run: Path) -> dict[str, str]:
    """SHA-256 of each tensor file of the run's newest checkpoint (verified), and of the metric columns of its results.

    Equal identities mean byte-identical model, EMA, optimizer (and waiting gradients) and byte-identical metrics; the
    `time` column, which is not a metric, is left out.
    Raises: UserError where there is no checkpoint, DataLoss where it does not verify.
    """
    checkpoints = Checkpoints(run / OURS_FOLDER / "checkpoints", writer_id="reader")
    names = checkpoints.committed()
    if not names:
        raise UserError(f"{run} has no committed checkpoint", remedy="name a run that has saved at least once")
    checkpoints.verify(names[-1])
    folder = checkpoints.root / names[-1]
    digests = {file.name: _digest(file.read_bytes()) for file in sorted(folder.glob("*.safetensors"))}
    return {"checkpoint": names[-1], **digests, "results.csv (metrics)": _digest(_metrics(run / "results.csv"))}


def _metrics(csv: Path) -> bytes:
    header, *rows = csv.read_text().splitlines()
    keep = [i for i, name in enumerate(header.split(",")) if name != "time"]
    return "\n".join(",".join(row.split(",")[i] for i in keep) for row in (header, *rows)).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
