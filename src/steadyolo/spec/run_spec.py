"""`RunSpec`: what was asked of a training run, typed and validated at the door."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from steadyolo.errors import UserError
from steadyolo.spec.budget import Budget, parse_budget
from steadyolo.spec.cadence import Auto, SaveCadence, parse_cadence, parse_duration_s
from steadyolo.spec.location import Location, parse_location
from steadyolo.spec.size import parse_bytes

TIERS = ("disk", "store", "replica")  # the places beyond the run folder, fastest first
ALL_LAYERS = 1_000_000  # more than any network has: as many as there are
_LONGEST_WITH_TIERS_S = 40.0  # with the time that a copy takes, a lost machine loses less than a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Ultralytics' train arguments as given, and ours. Values keep the text they came from, so that a spec replays."""

    VERSION: ClassVar[int] = 1

    arguments: Mapping[str, Any]  # Ultralytics' own, only those that were given
    ours: Mapping[str, str] = field(default_factory=dict)  # dotted names, as text

    save_every: SaveCadence = field(default_factory=Auto)
    num_keep_last: int = 3
    mtbf_s: float = 3600.0
    save_budget_share: float = 0.01
    compute: str = "auto"
    num_micro_batch_images: int | None = None  # None: as many as fit
    num_recomputed_layers: int | None = None  # None: as few as fit
    num_boxes: int | None = None  # None: as the labels have them
    memory_budget: Budget | None = None  # None: what is free
    num_ranks: int | None = None  # None: one for each device that is named
    num_threads: int | None = None  # None: one for each core
    bad_labels: str = "refuse"
    dataset_cache: Path | None = None  # None: the user's cache folder
    dataset_cache_bytes: int | None = None  # None: what the disk can well give
    num_tries: int = 3
    store: Location | None = None
    replica: Location | None = None
    disk: Location | None = None
    num_copies_kept: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 5))
    spool_bytes: int = 4 * 2**30
    bandwidth_bytes_s: float | None = None  # None: as fast as it goes
    store_drain_s: float = 600.0

    @property
    def tiers(self) -> dict[str, Location]:
        """The places beyond the run folder that keep its checkpoints, fastest first."""
        places = dict(zip(TIERS, (self.disk, self.store, self.replica), strict=True))
        return {tier: place for tier, place in places.items() if place is not None}

    @property
    def cadence(self) -> SaveCadence:
        """When saves are due, with the assumptions that `auto` rests on."""
        if isinstance(self.save_every, Auto):
            longest_s = _LONGEST_WITH_TIERS_S if self.tiers else math.inf
            return Auto(mtbf_s=self.mtbf_s, budget_share=self.save_budget_share, longest_s=longest_s)
        return self.save_every

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.VERSION, "arguments": dict(self.arguments), "ours": dict(self.ours)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunSpec:
        if set(raw) != {"version", "arguments", "ours"} or raw["version"] != cls.VERSION:
            raise UserError(
                f"not a version {cls.VERSION} run spec: version {raw.get('version')!r}, keys {sorted(raw)}",
                remedy="resume with the steadyolo version that started this run",
            )
        return make_spec(raw["arguments"], raw["ours"])

    def changed(self, arguments: Mapping[str, Any], ours: Mapping[str, str]) -> RunSpec:
        """This spec with some values replaced, for a run that goes on; validated again.

        Raises: UserError for one of ours that changes what is learned.
        """
        for name, text in ours.items():
            if name in OURS and not OURS[name].may_change and self.ours.get(name) != text:
                raise UserError(
                    f"{name} cannot change in a run that goes on", remedy="leave it out, or start a new run with it"
                )
        return make_spec({**self.arguments, **arguments}, {**self.ours, **ours})


def _whole(least: int) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise UserError(f"{name} is {text!r}", remedy=f"use a whole number of at least {least}")
        return value

    return parse


def _duration_s(name: str, text: str) -> float:
    try:
        return parse_duration_s(text)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", remedy=error.remedy) from None


def _bytes(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", remedy=error.remedy) from None


def _budget(name: str, text: str) -> Budget:
    try:
        return parse_budget(text)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", remedy=error.remedy) from None


def _whole_or(least: int, **words: int | None) -> Callable[[str, str], int | None]:
    """A whole number, or one of `words`, each with what it stands for."""

    def parse(name: str, text: str) -> int | None:
        if text.lower() in words:
            return words[text.lower()]
        try:
            return _whole(least)(name, text)
        except UserError as error:
            raise UserError(error.message, remedy=f"{error.remedy}, or {' or '.join(words)}") from None

    return parse


def _bytes_s(name: str, text: str) -> float:
    return float(_bytes(name, text.removesuffix("/s")))


def _share(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise UserError(f"{name} is {text!r}", remedy="use a share between 0 and 1, exclusive; 0.01 is one per cent")
    return value


def _by_tier(parse: Callable[[str, str], int], default: int) -> Callable[[str, str], dict[str, int]]:
    """One value for all tiers, or `disk:20,store:5`, where the others keep the default."""

    def parse_all(name: str, text: str) -> dict[str, int]:
        if ":" not in text:
            return dict.fromkeys(TIERS, parse(name, text))
        pairs = [pair.strip().partition(":") for pair in text.split(",")]
        if unknown := [tier for tier, _, _ in pairs if tier not in TIERS]:
            raise UserError(f"{name}: {unknown[0]!r} is no place", remedy=f"use {', '.join(TIERS)}: such as store:5")
        return {**dict.fromkeys(TIERS, default), **{tier: parse(f"{name} {tier}", value) for tier, _, value in pairs}}

    return parse_all


def _location(name: str, text: str) -> Location | None:
    if text.lower() == "none":
        return None
    try:
        return parse_location(text)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", remedy=error.remedy) from None


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text.lower() not in choices:
            raise UserError(f"{name} is {text!r}", remedy=f"use one of {', '.join(choices)}")
        return text.lower()

    return parse


@dataclass(frozen=True, slots=True)
class Setting:
    """One of our dotted arguments: the field of `RunSpec` that it sets, how it is read, and a line of help.

    `may_change` says that a run which goes on may take another value: it changes nothing that is learned.
    """

    field: str
    parse: Callable[[str, str], Any]
    help: str
    may_change: bool = True


OURS: dict[str, Setting] = {
    "save.every": Setting("save_every", lambda _, text: parse_cadence(text), "auto | 30s | 5min | 200steps"),
    "save.keep_last": Setting("num_keep_last", _whole(1), "newest checkpoints kept; the best one is kept beside them"),
    "save.mtbf": Setting("mtbf_s", _duration_s, "assumed time between failures (auto)"),
    "save.budget_share": Setting("save_budget_share", _share, "largest share of training time spent on saves (auto)"),
    "precision.compute": Setting(
        "compute", _one_of("auto", "fp32", "bf16", "fp16"), "auto | fp32 | bf16 | fp16", may_change=False
    ),
    "cpu.threads": Setting(
        "num_threads", _whole(1), "threads that compute on a CPU; one for each core unless given", False
    ),
    "memory.budget": Setting("memory_budget", _budget, "most memory of the device that is used: 24GiB | 80%"),
    "memory.micro_batch": Setting(
        "num_micro_batch_images", _whole_or(1, auto=None), "auto | images in one forward/backward", may_change=False
    ),
    "memory.recompute": Setting(
        "num_recomputed_layers",
        _whole_or(0, auto=None, off=0, all=ALL_LAYERS),
        "auto | off | all | N: layers that are computed again in the backward pass instead of being kept",
    ),
    "memory.boxes": Setting("num_boxes", _whole(1), "most boxes in one training picture, where labels do not tell"),
    "launch.ranks": Setting("num_ranks", _whole(1), "processes that train together on a CPU"),
    "data.bad_labels": Setting("bad_labels", _one_of("refuse", "skip"), "refuse | skip images with bad labels", False),
    "data.cache": Setting("dataset_cache", lambda _, text: Path(text).expanduser(), "folder for data sets from stores"),
    "data.cache_budget": Setting("dataset_cache_bytes", _bytes, "disk space for data sets from stores, such as 50GiB"),
    "store.url": Setting(
        "store", _location, "s3://BUCKET/PREFIX | gs://… | az://… | file:///…: keeps copies of the run"
    ),
    "store.replica": Setting("replica", _location, "a second such place, in another region or of another provider"),
    "store.disk": Setting("disk", _location, "a folder on a disk that outlives this machine"),
    "store.keep_last": Setting(
        "num_copies_kept", _by_tier(_whole(1), 5), "newest copies kept in each place: 5, or disk:20,store:5,replica:2"
    ),
    "store.spool": Setting("spool_bytes", _bytes, "disk space for checkpoints that wait for a store, such as 4GiB"),
    "store.bandwidth": Setting("bandwidth_bytes_s", _bytes_s, "most that is sent in a second, such as 20MiB/s"),
    "store.drain": Setting("store_drain_s", _duration_s, "how long a finished run waits for its last copies"),
    "recovery.tries": Setting("num_tries", _whole(1), "times a run goes back after a loss that is not finite"),
}


def make_spec(arguments: Mapping[str, Any], ours: Mapping[str, Any]) -> RunSpec:
    """A validated spec. Raises `UserError` naming the nearest known name for one of ours that is unknown."""
    spec = RunSpec(arguments=dict(arguments), ours={name: str(value) for name, value in ours.items()})
    for name, text in spec.ours.items():
        if name not in OURS:
            raise unknown_argument(name, OURS)
        spec = replace(spec, **{OURS[name].field: OURS[name].parse(name, text)})
    return spec


def unknown_argument(name: str, known: Iterable[str]) -> UserError:
    """The error for an argument nobody knows, with the nearest ones that exist."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    remedy = (
        f"did you mean {' or '.join(near)}?" if near else "see `steadyolo train --help` for the arguments there are"
    )
    return UserError(f"unknown argument {name!r}", remedy=remedy)


def parse_pairs(pairs: Iterable[str], known: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split `key=value` words into Ultralytics' arguments (typed) and ours (text, dotted names).

    Raises: UserError for a word without `=`, a key given twice with different values, or a key that neither knows.
    """
    known = set(known)
    arguments: dict[str, Any] = {}
    ours: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().lstrip("-")
        if not equals or not name:
            raise UserError(f"{pair!r} is not key=value", remedy=f"write it as {pair.strip('-= ') or 'epochs'}=VALUE")
        target: dict[str, Any] = ours if "." in name else arguments
        value = text.strip() if "." in name else literal(text)
        if name not in known | OURS.keys():
            raise unknown_argument(name, known | OURS.keys())
        if name in target and target[name] != value:
            raise UserError(f"{name} is given twice: {target[name]!r} and {value!r}", remedy=f"give {name} once")
        target[name] = value
    return arguments, ours


def literal(text: str) -> Any:
    """The value that a command-line word stands for: none, a boolean, a Python literal, or the text itself."""
    text = text.strip()
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
