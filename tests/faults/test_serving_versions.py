"""Versions that come while others answer: swapped without a request that fails, refused where they are corrupt."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.adapters.runtimes.choosing import choose
from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.errors import UserError
from steadyolo.serve.golden import read_png, write_png
from steadyolo.serve.served_model import MANIFEST, ServedModel, digest_of, open_served
from steadyolo.serve.service import DetectOptions, NoSuchModel, NotReady
from steadyolo.serve.session import SessionSettings
from tests.faults.serving import (
    FALLBACK,
    PRIMARY,
    SWAP_LIMIT_S,
    Faults,
    clients,
    load_settings,
    picture,
    serving,
    until,
)

Served = Callable[..., ServedModel]


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    folder = tmp_path / "faults"
    folder.mkdir()
    return Faults(folder)


def offer(folder: Path, model: ServedModel, number: int, *, spoil: str = "") -> str:
    """Put another version into a watched folder, as a copy does that comes under its final name at once."""
    partial, name = folder / f".partial-{number}", f"v{number}.served"
    shutil.copytree(model.folder, partial, ignore=shutil.ignore_patterns("compiled"))
    manifest = json.loads((partial / MANIFEST).read_text())
    manifest["name"] = name  # makes another version of the same weights
    if spoil == "bytes":
        data = bytearray((partial / "model.bin").read_bytes())
        data[len(data) // 2] ^= 0xFF
        (partial / "model.bin").write_bytes(data)
    if spoil == "answer":  # whole, but not what the source model answered
        path = partial / "golden.png"
        path.write_bytes(write_png(read_png(path.read_bytes())[::-1]))
        manifest["files"][path.name] = {"sha256": digest_of(path), "num_bytes": path.stat().st_size}
    (partial / MANIFEST).write_text(json.dumps(manifest))
    partial.rename(folder / name)
    return name


def test_versions_are_swapped_under_load(served: Served, faults: Faults, tmp_path: Path) -> None:
    num_swaps = 4

    async def scenario() -> None:
        folder = tmp_path / "versions"
        folder.mkdir()
        offer(folder, served("detect"), 0)
        async with serving({"m": folder}, faults.settings(load=load_settings()), watched=["m"]) as service:
            async with clients(service, "m", num=1, pause_s=0.02) as load:
                await until(lambda: len(load.answers) > 20, 5)
                for number in range(1, num_swaps + 1):
                    if number == 2:
                        offer(folder, served("detect"), 90, spoil="bytes")
                        await until(lambda: service.figures().more["num_refused_versions"] == 1, SWAP_LIMIT_S)
                        assert "was refused" in service.readiness().models[0].why
                    if number == 3:
                        offer(folder, served("detect"), 91, spoil="answer")
                        await until(lambda: service.figures().more["num_refused_versions"] == 2, SWAP_LIMIT_S)
                    before = service.figures().more["num_swaps"]
                    offer(folder, served("detect"), number)
                    await until(lambda before=before: service.figures().more["num_swaps"] > before, SWAP_LIMIT_S)  # type: ignore[misc]
                await asyncio.sleep(0.2)
            assert [error for *_, error in load.errors] == []
            assert len({answer.version for *_, answer in load.answers}) == num_swaps + 1
            assert len({str(answer.objects) for *_, answer in load.answers}) == 1, "a spoilt version answered"
            (model,) = service.readiness().models
            assert len(model.versions) == 1, "the old ones were unloaded"
            assert service.figures().num_restarts == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("runtime", [PRIMARY, FALLBACK])
def test_a_new_version_has_the_runtime_of_the_one_before(
    served: Served, faults: Faults, tmp_path: Path, runtime: str
) -> None:
    """Measured beside requests, the slower one may be found the faster; here one of the two was chosen by hand."""

    async def scenario() -> None:
        folder, cache = tmp_path / "versions", tmp_path / "cache"
        folder.mkdir()
        session = SessionSettings(num_threads=1, cache=cache)
        first = open_served(folder / offer(folder, served("detect"), 0))
        choose(first, session, open_session)
        (kept,) = cache.rglob("choice-*.json")
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "runtime": runtime}))
        settings = faults.settings(load=load_settings(), session=session)
        async with serving({"m": folder}, settings, watched=["m"]) as service:
            offer(folder, served("detect"), 1)
            await until(lambda: service.figures().more["num_swaps"] == 1, SWAP_LIMIT_S)
            answer = await service.detect("m", picture(), DetectOptions(), timeout_s=5)
            assert answer.version != first.version
            assert answer.session.startswith(runtime)
            assert list(cache.rglob("choice-*.json")) == [kept], "nothing is measured beside requests"
            (slot, *_), key = service._slots, service._catalogue.entries["m"].key()
            slot.kill("to see what is known of it meanwhile")
            await until(lambda: not slot.loaded, 5)
            assert slot.session_like(key).runtime == runtime

    asyncio.run(scenario())


def test_the_first_version_may_come_later(served: Served, faults: Faults, tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = tmp_path / "versions"
        folder.mkdir()
        settings = faults.settings(load=load_settings())
        async with serving({"m": folder}, settings, waits=False, watched=["m"]) as service:
            assert service.readiness().models[0].state == "waiting"
            with pytest.raises(NotReady):
                await service.detect("m", picture(), DetectOptions(), timeout_s=1)
            offer(folder, served("detect"), 1)
            await until(lambda: service.readiness().is_ready, 20)

    asyncio.run(scenario())


def test_a_model_that_answers_wrongly_is_never_ready(served: Served, faults: Faults, tmp_path: Path) -> None:
    async def scenario() -> None:
        offer(tmp_path, served("detect"), 1, spoil="answer")
        models = {"good": served("detect"), "bad": tmp_path / "v1.served"}
        async with serving(models, faults.settings(load=load_settings()), waits=False) as service:
            await until(lambda: {one.state for one in service.readiness().models} == {"ready", "failed"}, 20)
            assert not service.readiness().is_ready
            bad = next(one for one in service.readiness().models if one.name == "bad")
            assert "golden" in bad.why
            with pytest.raises(NotReady, match="golden"):
                await service.detect("bad", picture(), DetectOptions(), timeout_s=1)
            assert await service.detect("good", picture(), DetectOptions(), timeout_s=5)

    asyncio.run(scenario())


def test_a_budget_is_kept(served: Served, faults: Faults, tmp_path: Path) -> None:
    async def scenario() -> None:
        for number in (1, 2):
            offer(tmp_path, served("detect"), number)
        models = {name: tmp_path / f"{name}.served" for name in ("v1", "v2")}
        settings = faults.settings(load=load_settings())
        for _ in range(2):  # compiling takes memory of its own: the second start only loads
            async with serving(models, settings) as service:
                taken = max(model.num_bytes for model in service.readiness().models)
                assert taken > 0
        budget_bytes = taken + (3 << 20)  # less than a second one is thought to take
        async with serving(models, faults.settings(load=load_settings(), budget_bytes=budget_bytes)) as service:
            assert sorted(model.state for model in service.readiness().models) == ["ready", "unloaded"]
            assert service.readiness().models[1].why.startswith("left out")

    asyncio.run(scenario())


def test_a_model_larger_than_the_budget_is_refused_at_the_start(served: Served, faults: Faults) -> None:
    async def scenario() -> None:
        settings = faults.settings(load=load_settings(), budget_bytes=1 << 20)
        with pytest.raises(UserError, match="may take"):
            async with serving({"m": served("detect")}, settings):
                pass

    asyncio.run(scenario())


def test_a_request_loads_only_where_it_may(served: Served, faults: Faults) -> None:
    async def scenario() -> None:
        for may in (False, True):
            settings = faults.settings(load=load_settings(), load_on_request=may)
            async with serving({"m": served("detect")}, settings) as service:
                with pytest.raises(NoSuchModel):
                    await service.detect("other", picture(), DetectOptions(), timeout_s=1)
                with pytest.raises(NoSuchModel):
                    await service.detect("m", picture(), DetectOptions(), version="none", timeout_s=1)
                await service.unload("m")
                assert service.readiness().models[0].state == "unloaded"
                if may:
                    assert await service.detect("m", picture(), DetectOptions(), timeout_s=5)
                    continue
                with pytest.raises(NotReady):
                    await service.detect("m", picture(), DetectOptions(), timeout_s=1)
                await service.load("m")
                assert await service.detect("m", picture(), DetectOptions(), timeout_s=0.5)  # nothing is loaded for it

    asyncio.run(scenario())
