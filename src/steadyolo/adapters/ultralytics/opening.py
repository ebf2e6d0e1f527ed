"""Opens the folder of a run: a new one, or one that goes on. Everything that can be refused is refused here."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ultralytics import __version__ as ultralytics_version
from ultralytics.cfg import DEFAULT_CFG, get_cfg, get_save_dir
from ultralytics.utils import LOGGER

from steadyolo.adapters.objects.opening import open_stores
from steadyolo.adapters.ultralytics.arguments import batch_asked, check_arguments, check_changes, check_memory
from steadyolo.adapters.ultralytics.weights import check_weights
from steadyolo.errors import DataLoss, SteadyError, Transient, UserError
from steadyolo.spec.run_spec import RunSpec, make_spec
from steadyolo.state.snapshot import Snapshot
from steadyolo.train.ranks import Ranks
from steadyolo.vault.checkpoints import Checkpoints, Found, Rejected
from steadyolo.vault.disk import ensure_folder
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.lock import RunLock
from steadyolo.vault.newest import FoundCopy, newest_of_all
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.patience import Patience
from steadyolo.vault.restore import bring_best
from steadyolo.vault.session import Session, new_writer_id, open_session
from steadyolo.vault.tiers import token_of
from steadyolo.version import __version__

_STRICT_VERSIONS = ("torch", "ultralytics")  # the others rarely change a result, and never by much
_PATIENCE_S = 60.0  # with a store that answered a moment ago
_SET_BY_UPSTREAM = frozenset({"model", "task", "mode", "pretrained"})  # `YOLO.train` passes these by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run's folder, held by this process until `lock` is released."""

    spec: RunSpec
    folder: Path
    lock: RunLock
    start: Snapshot | None = None  # where the run goes on; None: from its beginning
    rejected: tuple[Rejected, ...] = ()  # newer checkpoints that cannot be used
    allowed: frozenset[str] = frozenset()  # what may have changed: dataset, versions
    writer: str
    stores: Mapping[str, ObjectStore] = field(default_factory=dict)  # by tier
    session: Session | None = None  # None where there are no tiers


def open_new(given: Mapping[str, Any], ours: Mapping[str, str]) -> Opened:
    """Check the request, then take a folder of its own for the run. Raises: UserError."""
    check_arguments(given)
    if batch_asked(given) is None:
        given = {**given, "batch": -1}  # as Ultralytics writes `auto`
    spec = make_spec(given, ours)
    check_memory(given, spec)
    _check_weights_of(given)
    folder = Path(get_save_dir(get_cfg(overrides=dict(given)))).absolute()
    own = folder / OURS_FOLDER
    if (own / "checkpoints").is_dir() and any((own / "checkpoints").iterdir()):
        raise UserError(
            f"{folder} already holds a run with checkpoints",
            remedy=f"go on with it: steadyolo resume {folder}; or choose another name=",
        )
    stores = open_stores(spec.tiers)
    ensure_folder(own)
    lock = RunLock(own).acquire()
    writer = new_writer_id()
    try:
        session = open_session(stores, folder, writer, tiers=spec.tiers, takeover=False, must_reach=True)
    except BaseException:
        lock.release()
        raise
    replace_file(own / "spec.json", to_json(spec.to_dict()))
    return Opened(spec=spec, folder=folder, lock=lock, writer=writer, stores=stores, session=session)


def open_existing(folder: Path, given: Mapping[str, Any], ours: Mapping[str, str], allowed: frozenset[str]) -> Opened:
    """Take an existing run's folder and find the newest checkpoint that verifies.

    Raises: UserError for a folder that is no run, is in use or finished, for changes that a run cannot take, and for
    packages of other versions or a run that went on elsewhere unless `allowed`; DataLoss when there are checkpoints and
    none can be used. A store that cannot be reached keeps no run from going on with what is here.
    """
    own = folder.absolute() / OURS_FOLDER
    if not (own / "spec.json").is_file():
        raise UserError(
            f"{folder} is not a steadyolo run: it has no {OURS_FOLDER}/spec.json",
            remedy="name a run folder; `steadyolo runs ls` lists those there are",
        )
    lock = RunLock(own).acquire()
    try:
        before = RunSpec.from_dict(json.loads((own / "spec.json").read_text()))
        changes = {
            name: value
            for name, value in given.items()
            if before.arguments.get(name) != value and name not in _SET_BY_UPSTREAM and value is not None
        }
        check_changes(changes)
        spec = before.changed(changes, ours)
        stores, writer = open_stores(spec.tiers, on_failure=LOGGER.warning), new_writer_id()
        takeover = "takeover" in allowed
        session = open_session(stores, folder, writer, tiers=spec.tiers, takeover=takeover, must_reach=False)
        found, session = _newest(own, writer, session)
        if found.snapshot is None and found.rejected:
            reasons = "".join(f"\n    {rejected.name} ({rejected.tier}): {rejected.why}" for rejected in found.rejected)
            raise DataLoss(
                f"no checkpoint of {folder} can be used:{reasons}",
                remedy="restore the folder from a copy; or start a new run from its weights/last.pt",
            )
        if (own / "finished.json").is_file():
            _refuse_finished(folder, spec, json.loads((own / "finished.json").read_text()))
        if found.snapshot is not None:
            _check_versions(found.snapshot.made_from["versions"], told="versions" in allowed)
    except BaseException:
        lock.release()
        raise
    return Opened(
        spec=spec,
        folder=folder.absolute(),
        lock=lock,
        start=found.snapshot,
        rejected=found.rejected,
        allowed=allowed,
        writer=writer,
        stores=stores,
        session=session,
    )


def open_together(ranks: Ranks, open_run: Callable[[], Opened]) -> Opened:
    """Have rank 0 open the run. The others get what it found, and no right to write."""
    opened = ranks.lead(open_run)
    told = ranks.told(opened and _shared(opened))
    if opened is not None:
        return opened
    folder, writer = Path(told["folder"]), new_writer_id()
    own = folder / OURS_FOLDER
    start = Checkpoints(own / "checkpoints", writer_id=writer).load(told["start"]) if told["start"] else None
    return Opened(
        spec=RunSpec.from_dict(told["spec"]),
        folder=folder,
        lock=RunLock(own),
        start=start,
        allowed=frozenset(told["allowed"]),
        writer=writer,
    )


def _shared(opened: Opened) -> dict[str, Any]:
    return {
        "spec": opened.spec.to_dict(),
        "folder": str(opened.folder),
        "start": opened.start.name if opened.start else None,
        "allowed": sorted(opened.allowed),
    }


def _newest(own: Path, writer: str, session: Session | None) -> tuple[FoundCopy | Found, Session | None]:
    """The newest checkpoint that verifies, here or in a tier that answers; it is in the run folder then."""
    checkpoints = Checkpoints(own / "checkpoints", writer_id=writer)
    if session is None:
        return checkpoints.newest_verified(), None
    record = session.record
    try:
        found = newest_of_all(
            checkpoints,
            session.runs,
            token_of=lambda name: token_of(checkpoints, record, name),
            patience=Patience(_PATIENCE_S, tell=LOGGER.warning),
        )
        best = bring_best(checkpoints, session.runs, found, patience=Patience(_PATIENCE_S, tell=LOGGER.warning))
    except Transient as error:
        LOGGER.warning(f"{error.message}; going on with what is in the run folder")
        return checkpoints.newest_verified(), session
    for problem in best.problems:
        LOGGER.warning(problem)
    session = replace(session, record=replace(record, tokens={**best.tokens, **found.tokens, **record.tokens}))
    session.record.write(own)
    return found, session


def _refuse_finished(folder: Path, spec: RunSpec, finished: Mapping[str, Any]) -> None:
    """Raise `UserError` unless more epochs, or after an early stop more patience, are asked for than it had."""
    asked = int(spec.arguments.get("epochs", DEFAULT_CFG.epochs))
    patience = int(spec.arguments.get("patience", DEFAULT_CFG.patience))
    if asked <= finished["epochs"] or (finished["early"] and patience <= finished["patience"]):
        early = " (stopped early)" if finished["early"] else ""
        raise UserError(
            f"{folder} is finished: {finished['epochs']} of {asked} epochs{early}",
            remedy="go on further with epochs=N (after an early stop: patience=N), or start anew from weights/best.pt",
        )


def _check_versions(before: Mapping[str, str], *, told: bool) -> None:
    now = package_versions()
    changed = {name: (before.get(name), now[name]) for name in now if before.get(name) != now[name]}
    strict = {name: pair for name, pair in changed.items() if name in _STRICT_VERSIONS}
    if strict and not told:
        lines = ", ".join(f"{name} {was} then, {is_now} now" for name, (was, is_now) in strict.items())
        raise UserError(
            f"this run was made with other packages: {lines}; it would go on, but not exactly",
            remedy="install the versions it began with, or pass allow=versions",
        )
    for name, (was, is_now) in changed.items():
        LOGGER.warning(f"{name} was {was} when this run began and is {is_now} now")


def package_versions() -> dict[str, str]:
    """Versions that a run's exactness depends on."""
    from importlib.metadata import version

    import cv2
    import numpy

    return {
        "steadyolo": __version__,
        "torch": torch.__version__,
        "ultralytics": ultralytics_version,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "torchvision": version("torchvision"),
    }


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_json(value: Any) -> bytes:
    """A small file's content."""
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def _check_weights_of(given: Mapping[str, Any]) -> None:
    for name in ("model", "pretrained"):
        path = Path(str(given.get(name) or ""))
        if path.suffix == ".pt" and path.exists():
            check_weights(path)
        elif path.suffix == ".pt" and path.parent != Path("."):
            raise UserError(f"{name}={path} is not there", remedy="check the path")
        elif name == "model" and path.suffix in {".yaml", ".yml"} and path.parent != Path(".") and not path.exists():
            raise UserError(f"the model yaml {path} is not there", remedy="check the path, or name one of Ultralytics'")


@contextlib.contextmanager
def clear_disk_errors() -> Iterator[None]:
    """Turn a disk that is full or read-only at the start into a clear error."""
    try:
        yield
    except SteadyError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise UserError(
            f"the run folder cannot be used: {error.strerror or error} ({error.filename})",
            remedy="choose a writable project= with free space",
        ) from error
