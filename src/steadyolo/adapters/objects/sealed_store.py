"""`SealedStore`: encrypts each object before it leaves this machine (AES-256-GCM), through cryptography."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.objects import SEALED, Absent, Data, Listed, ObjectStore, Stored, Taken

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_ID_BYTES, _SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 8, 16, 12, 16
_HEADER_BYTES = len(SEALED) + _ID_BYTES + _SALT_BYTES + _NONCE_BYTES
_COMMAND_TIMEOUT_S = 60.0


class SealedStore:
    """An object store whose bodies only the holder of `key` can read; a reader of the bucket sees names and sizes.

    A body is `STEADYO1`, the key's id (8 bytes), salt (16), nonce (12), then ciphertext and tag. Each object has a key
    of its own, derived from `key` and the salt (HKDF-SHA-256), and the object's name is authenticated with it: neither
    a changed byte nor an object that was moved to another name is accepted.
    """

    def __init__(self, store: ObjectStore, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise UserError(f"the key has {len(key)} bytes", remedy=f"use a key of {KEY_BYTES} bytes")
        self.url = store.url
        self._store = store
        self._key = key
        self._key_id = hashlib.sha256(b"steadyolo key id" + key).digest()[:_ID_BYTES]

    def put(self, key: str, data: Data) -> None:
        self._store.put(key, self._sealed(key, data))

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        try:
            return self._store.put_if(key, self._sealed(key, data), tag=tag)
        except Taken:  # the same data is never sealed in the same way twice
            with suppress(Absent, DataLoss):
                found = self.get(key)
                if found.data == data:
                    return found.tag
            raise

    def get(self, key: str) -> Stored:
        stored = self._store.get(key)
        return Stored(data=self._opened(key, bytes(stored.data)), tag=stored.tag)

    def stream(self, key: str) -> Iterator[Data]:
        yield self.get(key).data  # nothing of it is known to be true before its end

    def list(self, folder: str) -> list[Listed]:
        return [
            Listed(key=found.key, num_bytes=max(0, found.num_bytes - _HEADER_BYTES - _TAG_BYTES), tag=found.tag)
            for found in self._store.list(folder)
        ]

    def holds(self, listed: Listed, data: Data) -> bool:
        if listed.num_bytes != len(data):
            return False
        try:
            return self.get(listed.key).data == data
        except (Absent, DataLoss):
            return False

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def _sealed(self, name: str, data: Data) -> bytes:
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        return b"".join((SEALED, self._key_id, salt, nonce, self._cipher(salt).encrypt(nonce, data, name.encode())))

    def _opened(self, name: str, body: bytes) -> bytes:
        magic, key_id = body[: len(SEALED)], body[len(SEALED) :][:_ID_BYTES]
        plain = self._decrypted(name, body)
        if plain is not None and (magic, key_id) == (SEALED, self._key_id):
            return plain
        if plain is None and len(body) >= _HEADER_BYTES and magic == SEALED and key_id != self._key_id:
            raise UserError(
                f"{name} in {self.url} is encrypted with key {key_id.hex()}, and the key given is {self._key_id.hex()}",
                remedy="give the key that it was written with: key=FILE or key_command=… in the URL",
            )
        if plain is None and not SEALED.startswith(magic):
            raise UserError(
                f"{name} in {self.url} is not encrypted, or not by steadyolo",
                remedy="leave key= out of the URL, or check that this is the right place",
            )
        raise DataLoss(f"{name} in {self.url} was changed or moved after it was written", remedy="use another copy")

    def _decrypted(self, name: str, body: bytes) -> bytes | None:
        """What is in a body, if it was sealed with our key under this name, whatever its first bytes say."""
        from cryptography.exceptions import InvalidTag

        if len(body) < _HEADER_BYTES + _TAG_BYTES:
            return None
        salt, nonce = body[len(SEALED) + _ID_BYTES :][:_SALT_BYTES], body[_HEADER_BYTES - _NONCE_BYTES : _HEADER_BYTES]
        try:
            return self._cipher(salt).decrypt(nonce, body[_HEADER_BYTES:], name.encode())
        except InvalidTag:
            return None

    def _cipher(self, salt: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"steadyolo object").derive(self._key))


def key_from_file(path: Path) -> bytes:
    """The key in a file: 32 bytes raw, in hex or in base64. Raises: UserError."""
    try:
        return _key(path.expanduser().read_bytes(), f"the key file {path}")
    except OSError as error:
        raise UserError(f"the key file {path} cannot be read: {error.strerror}", remedy="check the path") from None


def key_from_command(command: str) -> bytes:
    """The key that `command` (no shell) prints, in hex or base64. Its output is never shown. Raises: UserError."""
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UserError(f"key_command failed: {type(error).__name__}", remedy="run it by hand and look") from None
    if done.returncode:
        raise UserError(f"key_command ended with code {done.returncode}", remedy="run it by hand and look")
    return _key(done.stdout, "the output of key_command")


def _key(raw: bytes, what: str) -> bytes:
    """32 bytes from their raw form, hex or base64."""
    text = raw.strip()
    candidates = [raw]
    for decode in (binascii.unhexlify, lambda text: base64.b64decode(text, validate=True)):
        try:
            candidates.append(decode(text))
        except (binascii.Error, ValueError):
            continue
    key = next((found for found in candidates if len(found) == KEY_BYTES), None)
    if key is None:
        raise UserError(
            f"{what} is not a key", remedy="create one of 32 bytes: openssl rand -hex 32 > FILE; chmod 600 FILE"
        )
    return key
