"""Gets many objects at a time out of a store, each verified before it is handed on."""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from steadyolo.errors import Transient
from steadyolo.vault.objects import Absent, Listed, ObjectStore

PAUSES_S = (0.5, 2.0, 8.0)  # before an object is asked for again
_LOOK_EVERY_S = 0.5
_LARGE_BYTES = 64 * 1024**2  # only one such object at a time is held in memory
_LIKE_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_AGAIN = "start again when nobody writes to the data set: what was fetched stays"

_Written = TypeVar("_Written")


class Transfer(Generic[_Written]):
    """Fetches objects in `num_parallel` threads, and hands each to `write` and what that returns to `keep`.

    An object is what the listing said: its size and, where its tag is an MD5, that. `write` is called in many threads
    at once, `keep` in one at a time. Where waiting may help, an object is asked for again.
    After `run` returned or raised nothing is kept any more, although a request may still wait for its answer.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        write: Callable[[Listed, bytes], _Written],
        keep: Callable[[_Written], None],
        num_parallel: int,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._store = store
        self._write = write
        self._keep = keep
        self._num_parallel = num_parallel
        self._pauses_s = pauses_s
        self._tags_may_be_md5 = True
        self._tags_are_md5 = False  # one of them was
        self._over = threading.Event()
        self._keeping = threading.Lock()
        self._large = threading.Lock()
        self._todo: queue.SimpleQueue[Listed] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Listed | BaseException] = queue.SimpleQueue()

    def run(self, wanted: Sequence[Listed], *, on_progress: Callable[[int, int], None]) -> None:
        """Return when all of `wanted` are kept.

        `on_progress` gets the number and the bytes of those that are, often; what it raises ends the transfer.
        Raises: what the store, `write` or `keep` raised first.
        """
        # The smallest comes first, alone: it tells whether tags are MD5s, before damage could be taken for encryption.
        first = min(wanted, key=lambda listed: listed.num_bytes, default=None)
        for listed in sorted(wanted, key=lambda listed: listed != first):
            self._todo.put(listed)
        self._start(min(1, len(wanted)))
        num_done = done_bytes = 0
        try:
            while num_done < len(wanted):
                try:
                    done = self._done.get(timeout=_LOOK_EVERY_S)
                except queue.Empty:
                    on_progress(num_done, done_bytes)
                    continue
                if isinstance(done, BaseException):
                    raise done
                if not num_done:
                    self._start(min(self._num_parallel, len(wanted)) - 1)
                num_done, done_bytes = num_done + 1, done_bytes + done.num_bytes
                on_progress(num_done, done_bytes)
        finally:
            with self._keeping:
                self._over.set()

    def _start(self, num_threads: int) -> None:
        for _ in range(num_threads):
            threading.Thread(target=self._work, name="data-fetch", daemon=True).start()

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                listed = self._todo.get_nowait()
                written = self._write(listed, self._fetched(listed))
                with self._keeping:
                    if self._over.is_set():
                        return
                    self._keep(written)
                self._done.put(listed)
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001  # the thread's edge: `run` raises it
            self._done.put(error)

    def _fetched(self, listed: Listed) -> bytes:
        for pause_s in self._pauses_s:
            try:
                return self._fetched_once(listed)
            except Transient:
                if self._over.wait(pause_s):
                    break
        return self._fetched_once(listed)

    def _fetched_once(self, listed: Listed) -> bytes:
        if listed.num_bytes > _LARGE_BYTES:
            with self._large:
                return self._checked(listed)
        return self._checked(listed)

    def _checked(self, listed: Listed) -> bytes:
        try:
            data = bytes(self._store.get(listed.key).data)
        except Absent:
            raise Transient(f"{listed.key} is no longer in {self._store.url}", remedy=_AGAIN) from None
        if len(data) != listed.num_bytes or not self._is_body_of(listed, data):
            raise Transient(
                f"{listed.key} of {self._store.url} arrived with {len(data)} bytes that are not "
                f"the {listed.num_bytes} bytes listed",
                remedy=_AGAIN,
            )
        return data

    def _is_body_of(self, listed: Listed, data: bytes) -> bool:
        """Whether an MD5 that the listing gives agrees. Where tags turn out to be none, the size must do."""
        like_md5 = _LIKE_MD5.fullmatch(listed.tag.partition(" ")[0])
        if not self._tags_may_be_md5 or like_md5 is None:
            return True
        if like_md5[1] == hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._tags_are_md5 = True
            return True
        if self._tags_are_md5 or not self._store.holds(listed, data):
            return False
        self._tags_may_be_md5 = False  # the store encrypts: its tags only look like one
        return True
