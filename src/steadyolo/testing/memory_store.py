"""`MemoryStore`: an object store in memory, for tests of what stands above one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

from steadyolo.vault.objects import Absent, Data, Listed, Stored, Taken, checked_key


class MemoryStore:
    """Objects in a dictionary. Passes the suite that every `ObjectStore` passes; `objects` is there to be damaged."""

    def __init__(self, url: str = "memory://store") -> None:
        self.url = url
        self.objects: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: Data) -> None:
        with self._lock:
            self.objects[checked_key(key)] = Stored(data=bytes(data), tag=uuid.uuid4().hex)

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        with self._lock:
            found = self.objects.get(checked_key(key))
            if found is not None and found.data == data:
                return found.tag
            if (found.tag if found else None) != tag:
                raise Taken(f"{key} was written by somebody else", remedy="read it again")
            self.objects[key] = stored = Stored(data=bytes(data), tag=uuid.uuid4().hex)
            return stored.tag

    def get(self, key: str) -> Stored:
        with self._lock:
            if checked_key(key) not in self.objects:
                raise Absent(f"{key} is not there", remedy="check the name")
            return self.objects[key]

    def stream(self, key: str) -> Iterator[Data]:
        yield self.get(key).data

    def list(self, folder: str) -> list[Listed]:
        inside = f"{checked_key(folder.rstrip('/'))}/" if folder else ""
        with self._lock:
            found = [(key, stored) for key, stored in self.objects.items() if key.startswith(inside)]
        return [Listed(key=key, num_bytes=len(stored.data), tag=stored.tag) for key, stored in sorted(found)]

    def holds(self, listed: Listed, data: Data) -> bool:
        with self._lock:
            stored = self.objects.get(listed.key)
        return stored is not None and stored.data == bytes(data)

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(checked_key(key), None)
