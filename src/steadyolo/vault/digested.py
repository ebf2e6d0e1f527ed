"""JSON texts that carry a digest of themselves, so that a flipped bit anywhere in them is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.objects import SEALED, Data

_USE_OLDER = "use an older checkpoint; `resume` does so by itself"


def to_text(body: Mapping[str, Any]) -> bytes:
    """The text of `body`, which ends with a digest of the rest."""
    return _text({**body, "digest": _digest(body)})


def from_text(text: Data, *, what: str, remedy: str = _USE_OLDER) -> dict[str, Any]:
    """The body that `to_text` was given.

    Raises: `DataLoss` naming `what` unless `text` is byte for byte what `to_text` wrote, in any version of the body;
    `UserError` when it is encrypted and was read without a key.
    """
    text = bytes(text)
    if text.startswith(SEALED):
        raise UserError(f"{what} is encrypted", remedy="give its key: key=FILE or key_command=… in the store's URL")
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise DataLoss(f"{what} is damaged: {error}", remedy=remedy) from error
    if not isinstance(raw, dict) or "digest" not in raw:
        raise DataLoss(f"{what} is damaged: expected a digest, found none", remedy=remedy)
    told = raw.pop("digest")
    found = _digest(raw)
    if told != found or _text({**raw, "digest": told}) != text:
        raise DataLoss(f"{what} is damaged: expected digest {told}, found {found}", remedy=remedy)
    return raw


def _text(raw: Mapping[str, Any]) -> bytes:
    return json.dumps(raw, indent=1).encode() + b"\n"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body)).hexdigest()
