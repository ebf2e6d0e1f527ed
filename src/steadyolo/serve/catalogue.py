"""The models of a service by name: which version answers, which ones come and go, and what stands in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import ModelStatus, NoSuchModel, State
from steadyolo.serve.settings import ServedName
from steadyolo.serve.slot import Slot
from steadyolo.serve.watching import Versions

_GUESSED_TIMES = 4  # memory of a model before it is measured, in sizes of its files


@dataclass(eq=False, slots=True)
class Entry:
    """One model. Its engines in workers are named by `key`."""

    asked: ServedName
    versions: Versions | None = None  # where new ones come from
    current: ServedModel | None = None
    others: dict[str, ServedModel] = field(default_factory=dict)  # older versions that still answer, by version
    refused: dict[object, str] = field(default_factory=dict)  # what was wrong with versions that came, by signature
    num_tries: dict[object, int] = field(default_factory=dict)
    loading: asyncio.Task[None] | None = None  # on behalf of requests
    is_required: bool = True
    is_resident: bool = True
    used_at_s: float = 0.0
    why: str = ""
    failed: str = ""
    unseen: str = ""  # why it is not known now whether there is a newer version
    num_swaps: int = 0
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def key(self, version: str | None = None) -> str | None:
        """The engine for a version, or for the one that answers now; None where there is none."""
        if version is None or (self.current and version == self.current.version):
            return key_of(self.asked.name, self.current) if self.current else None
        return key_of(self.asked.name, self.others[version]) if version in self.others else None

    def is_loaded(self, slots: Sequence[Slot]) -> bool:
        """Is the version that answers warm somewhere?"""
        return any(self.key() in slot.loaded for slot in slots)

    def num_bytes(self, slots: Sequence[Slot]) -> int:
        """Measured where it is loaded; a guess before."""
        key = self.key()
        measured = [slot.loaded[key]["num_bytes"] for slot in slots if key in slot.loaded]
        files = self.current.files.values() if self.current else ()
        return max(measured, default=0) or _GUESSED_TIMES * sum(file.num_bytes for file in files)

    def status(self, slots: Sequence[Slot]) -> ModelStatus:
        """As it stands. Ready: warm in every worker once, and in one of them now."""
        key = self.key()
        answering = next((slot for slot in slots if key in slot.loaded and not slot.why_out), None)
        out = "; ".join(f"{slot.place.name}: {why}" for slot in slots if key and (why := slot.why(key)))
        state: State
        if self.failed:
            state = "failed"
        elif not self.is_resident:
            state = "unloaded"
        elif self.current is None:
            state = "waiting"
        elif answering and key and all(slot.was_warm(key) for slot in slots):
            state = "ready"
        else:
            state = "warming" if any(key in slot.warming for slot in slots) else "loading"
        return ModelStatus(
            name=self.asked.name,
            state=state,
            model=self.current,
            versions=tuple(one.version for one in (*self.others.values(), self.current) if one),
            session=str(answering.loaded[key]["session"]) if answering and key else None,
            is_required=self.is_required,
            num_bytes=self.num_bytes(slots) if answering else 0,
            why=self.failed or out or self.why or self.unseen,
            warm_s=answering.loaded[key]["usual_s"].get("1") if answering and key else None,
        )


class Catalogue:
    """All entries, by name."""

    def __init__(self, names: Sequence[ServedName]) -> None:
        self.entries = {asked.name: Entry(asked, is_required=True) for asked in names}
        if len(self.entries) < len(names):
            raise UserError("two models have one name", remedy="name each differently: name=model")

    def entry(self, name: str) -> Entry:
        """Raises: NoSuchModel."""
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none"
            raise NoSuchModel(f"there is no model {name!r} here", remedy=f"use one of: {known}")
        return self.entries[name]

    def route(self, name: str, version: str | None) -> str | None:
        """The engine that computes a request now."""
        return self.entries[name].key(version)


def key_of(name: str, model: ServedModel) -> str:
    """The name of an engine in all workers."""
    return f"{name}@{model.version}"


def version_in(key: str) -> str:
    """The version of an engine that `key_of` named."""
    return key.rpartition("@")[2]
