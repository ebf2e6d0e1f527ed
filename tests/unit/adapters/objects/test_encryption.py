"""Encryption by the store and before it: what comes back, what is refused, and what the server is left with."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.adapters.objects.opening import open_store
from steadyolo.adapters.objects.sealed_store import SealedStore, key_from_command, key_from_file
from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.spec.location import parse_location
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.objects import SEALED, ObjectStore, Stored
from tests.servers.seaweed import BUCKET, SeaweedServer

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
BODY = b"the weights of a model " * 50
MARK = os.urandom(4096)  # nothing else on a disk looks like it, and no server can compress it


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY.hex())
    return path


@pytest.fixture
def other_key_file(tmp_path: Path) -> Path:
    path = tmp_path / "other-key"
    path.write_bytes(OTHER_KEY)
    return path


def opened(url: str) -> ObjectStore:
    return open_store(parse_location(url))


def shown(error: SteadyError) -> str:
    return f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


def forms_of(key: bytes) -> tuple[str, ...]:
    return key.hex(), base64.b64encode(key).decode(), repr(key)[2:-1]


# --- by the store ---


@pytest.mark.parametrize(
    ("sse", "header"),
    [("s3", {"ServerSideEncryption": "AES256"}), ("kms:alias/seaweedfs-default", {"ServerSideEncryption": "aws:kms"})],
)
def test_the_store_encrypts_as_the_url_says(
    seaweed: SeaweedServer, aws: None, prefix: str, sse: str, header: dict[str, str]
) -> None:
    store = opened(seaweed.url(prefix, sse=sse))
    store.put("a", BODY)
    store.put_if("claim", BODY, tag=None)
    for key in ("a", "claim"):
        told = seaweed.client().head_object(Bucket=BUCKET, Key=f"{prefix}/{key}")
        assert told.items() >= header.items()
        assert store.get(key).data == BODY
        assert all(store.holds(listed, BODY) for listed in store.list(""))


def test_without_the_option_the_bucket_decides(seaweed: SeaweedServer, s3_url: str, prefix: str) -> None:
    opened(s3_url).put("a", BODY)
    assert "ServerSideEncryption" not in seaweed.client().head_object(Bucket=BUCKET, Key=f"{prefix}/a")


def test_a_customers_key(seaweed: SeaweedServer, aws: None, prefix: str, key_file: Path, other_key_file: Path) -> None:
    store = opened(seaweed.url(prefix, sse=f"c:{key_file}"))
    store.put("a", BODY)
    assert store.get("a").data == BODY
    assert store.holds(store.list("")[0], BODY)
    tag = store.put_if("claim", BODY, tag=None)
    store.put_if("claim", BODY[::-1], tag=tag)
    with pytest.raises(UserError, match="encrypted with a key of the customer's") as without:
        opened(seaweed.url(prefix)).get("a")
    assert "give the same key: sse=c:FILE" in without.value.remedy
    with pytest.raises(UserError) as wrong:
        opened(seaweed.url(prefix, sse=f"c:{other_key_file}")).get("a")
    for error in (without.value, wrong.value):
        assert not any(form in shown(error) for key in (KEY, OTHER_KEY) for form in forms_of(key))


@pytest.mark.parametrize("option", ["sse=c", "key"])
def test_a_key_that_cannot_be_read_is_told(seaweed: SeaweedServer, aws: None, tmp_path: Path, option: str) -> None:
    (tmp_path / "short").write_bytes(KEY[:31])
    name, _, kind = option.partition("=")
    for path, told in ((tmp_path / "absent", "cannot be read: No such file"), (tmp_path / "short", "is not a key")):
        with pytest.raises(UserError, match=told) as found:
            opened(seaweed.url("runs", **{name: f"{kind}:{path}" if kind else str(path)})).get("a")
        assert not any(form in shown(found.value) for form in forms_of(KEY[:31]))


def server_holds(server: SeaweedServer, mark: bytes) -> bool:
    return any(mark in path.read_bytes() for path in server.folder.rglob("*") if path.is_file())


def test_the_server_is_left_with_nothing_that_can_be_read(
    seaweed: SeaweedServer, aws: None, prefix: str, key_file: Path
) -> None:
    for number, option in enumerate(({"key": str(key_file)}, {"sse": f"c:{key_file}"}, {"sse": "s3"})):
        store = opened(seaweed.url(f"{prefix}/{number}", **option))
        store.put("a", MARK)
        assert store.get("a").data == MARK
    assert not server_holds(seaweed, MARK)
    opened(seaweed.url(f"{prefix}/plain")).put("a", MARK)
    assert server_holds(seaweed, MARK), "nothing would be found in the clear either, so this proves nothing"


# --- before it ---


@pytest.fixture
def bare() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def sealed(bare: MemoryStore) -> SealedStore:
    return SealedStore(bare, KEY)


def test_a_reader_of_the_bucket_learns_names_and_sizes_only(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("a", BODY)
    sealed.put("b", BODY)
    bodies = [bare.get(key).data for key in ("a", "b")]
    assert all(body.startswith(SEALED) and BODY[:8] not in body for body in bodies)
    assert bodies[0][16:] != bodies[1][16:], "the same body is sealed differently each time"
    assert [listed.num_bytes for listed in sealed.list("")] == [len(BODY)] * 2


def test_every_changed_bit_is_noticed(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("a", b"body")
    good = bare.get("a").data
    for position in range(len(good) * 8):
        flipped = bytearray(good)
        flipped[position // 8] ^= 1 << position % 8
        bare.objects["a"] = Stored(data=bytes(flipped), tag="t")
        with pytest.raises(DataLoss, match="changed or moved"):
            sealed.get("a")
        assert not sealed.holds(sealed.list("")[0], b"body")
    bare.objects["a"] = Stored(data=good, tag="t")
    assert sealed.get("a").data == b"body"


def test_every_truncation_is_noticed(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("a", b"body")
    good = bare.get("a").data
    for num_bytes in range(len(good)):
        bare.objects["a"] = Stored(data=good[:num_bytes], tag="t")
        with pytest.raises(DataLoss, match="a in memory://store was changed"):
            sealed.get("a")
        assert sealed.list("")[0].num_bytes >= 0


def test_objects_that_changed_places_are_noticed(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("a", b"one")
    sealed.put("b", b"two")
    bare.objects["a"], bare.objects["b"] = bare.objects["b"], bare.objects["a"]
    for key in ("a", "b"):
        with pytest.raises(DataLoss, match="changed or moved"):
            sealed.get(key)


def test_a_page_in_html_is_noticed(bare: MemoryStore, sealed: SealedStore) -> None:
    bare.put("a", b"<html>Sign in to go on</html>")
    with pytest.raises(UserError, match="a in memory://store is not encrypted"):
        sealed.get("a")


def test_another_key_is_told_from_damage(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("a", BODY)
    with pytest.raises(UserError, match="is encrypted with key") as found:
        SealedStore(bare, OTHER_KEY).get("a")
    assert "give the key that it was written with" in found.value.remedy
    assert not any(form in shown(found.value) for key in (KEY, OTHER_KEY) for form in forms_of(key))


def test_no_key_is_told_from_damage(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put("writer.json", to_text({"version": 1}))
    with pytest.raises(UserError, match=r"writer\.json is encrypted") as found:
        from_text(bare.get("writer.json").data, what="writer.json")
    assert "key=FILE" in found.value.remedy


def test_a_claim_under_another_key_is_not_overwritten(bare: MemoryStore, sealed: SealedStore) -> None:
    sealed.put_if("claim", b"theirs", tag=None)
    with pytest.raises(UserError, match="is encrypted with key"):
        SealedStore(bare, OTHER_KEY).put_if("claim", b"mine", tag=None)
    assert sealed.get("claim").data == b"theirs"


@pytest.mark.parametrize("num_bytes", [0, 16, 31, 33, 64])
def test_a_key_of_another_size_is_refused(num_bytes: int) -> None:
    with pytest.raises(UserError, match=f"the key has {num_bytes} bytes"):
        SealedStore(MemoryStore(), bytes(num_bytes))


def test_many_threads_may_seal_at_once(bare: MemoryStore, sealed: SealedStore) -> None:
    def use(number: int) -> None:
        for turn in range(20):
            sealed.put(f"{number}", b"%d %d" % (number, turn))
            assert sealed.get(f"{number}").data == b"%d %d" % (number, turn)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({stored.data[16:44] for stored in bare.objects.values()}) == 4


# --- keys ---


@pytest.mark.parametrize(
    "written",
    [KEY, KEY.hex().encode(), KEY.hex().encode() + b"\n", base64.b64encode(KEY), base64.b64encode(KEY) + b"\n"],
    ids=["raw", "hex", "hex and a line's end", "base64", "base64 and a line's end"],
)
def test_keys_are_read_in_every_form(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(written)
    assert key_from_file(path) == KEY


def test_a_command_may_give_the_key(seaweed: SeaweedServer, aws: None, prefix: str, key_file: Path) -> None:
    command = f"{sys.executable} -c \"print(open('{key_file}').read())\""
    assert key_from_command(command) == KEY
    opened(seaweed.url(prefix, key_command=command)).put("a", BODY)
    assert opened(seaweed.url(prefix, key=str(key_file))).get("a").data == BODY
    assert bytes(opened(seaweed.url(prefix)).get("a").data).startswith(SEALED)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/no/such/program", "FileNotFoundError"),
        (f"{sys.executable} -c \"print('{KEY[:20].hex()}'); raise SystemExit(3)\"", "ended with code 3"),
        (f"{sys.executable} -c \"print('{KEY[:20].hex()}')\"", "is not a key"),
        ("'unbalanced", "ValueError"),
    ],
)
def test_a_command_that_gives_no_key(command: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as found:
        key_from_command(command)
    assert KEY[:20].hex() not in shown(found.value)


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., object] = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(*args, **{**kwargs, "timeout": 0.2}))
    with pytest.raises(UserError, match="TimeoutExpired"):
        key_from_command(f'{sys.executable} -c "import time; time.sleep(60)"')
