"""What happens to the files of a model, and to models, while they are served."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.errors import UserError
from steadyolo.serve import swapping
from steadyolo.serve.served_model import ServedModel, open_served
from steadyolo.serve.service import DetectOptions, NoSuchModel, NotReady
from steadyolo.serve.session import SessionSettings
from steadyolo.serve.wire import Message
from tests.faults.serving import FALLBACK, SWAP_LIMIT_S, Faults, clients, load_settings, picture, serving, until
from tests.faults.test_serving_versions import offer

Served = Callable[..., ServedModel]
OFTEN = {"idle_s": 0.1, "check_s": 0.2}


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    folder = tmp_path / "faults"
    folder.mkdir()
    return Faults(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "versions"
    made.mkdir()
    return made


def test_files_may_go_or_change_while_a_model_is_served(served: Served, faults: Faults, folder: Path) -> None:
    """When its worker is started again it is not served as what it is not; loading it takes what is there."""

    async def scenario() -> None:
        offer(folder, served("detect"), 1)
        offer(folder, served("detect"), 2, spoil="answer")
        offer(folder, served("detect"), 3)
        place = folder / "v1.served"
        async with serving({"m": place}, faults.settings(load=load_settings(**OFTEN))) as service:
            (slot,) = service._slots
            first = service.readiness().models[0].model
            assert first
            shutil.rmtree(place)
            await asyncio.sleep(0.5)
            (folder / "v2.served").rename(place)  # another version, with an answer that would be taken for wrong
            await asyncio.sleep(0.5)
            shutil.rmtree(place)
            (folder / "v3.served").rename(place)
            async with clients(service, "m", num=1) as load:
                await asyncio.sleep(0.5)
            assert [error for *_, error in load.errors] == []
            assert {answer.version for *_, answer in load.answers} == {first.version}
            assert service.figures().num_restarts == 0

            os.kill(slot.pid or 0, signal.SIGKILL)
            await until(lambda: "was replaced" in service.readiness().models[0].why, 20)
            with pytest.raises(NotReady, match="was replaced"):
                await service.detect("m", picture(), DetectOptions(), timeout_s=2)
            assert not service.readiness().is_ready
            assert service.figures().num_restarts == 1, "no worker is ended for that"
            await service.load("m")
            answer = await service.detect("m", picture(), DetectOptions(), timeout_s=5)
            assert answer.version == open_served(place).version != first.version
            assert service.readiness().is_ready

    asyncio.run(scenario())


@pytest.mark.parametrize("runtime", ["openvino", FALLBACK])
def test_unloading_answers_what_was_accepted(served: Served, faults: Faults, runtime: str) -> None:
    async def scenario() -> None:
        session = SessionSettings(runtime=runtime, num_threads=1)
        async with serving({"m": served("detect")}, faults.settings(load=load_settings(), session=session)) as service:
            (slot,) = service._slots
            faults.begin("slow", runtime, "0.02")
            async with clients(service, "m", num=2 * slot.place.window, pause_s=0.001) as load:
                await until(lambda: len(load.answers) > 10, 5)
                assert service.figures().num_queued, "nothing waits, so this proves nothing"
                await service.unload("m")
                assert not slot.loaded
                assert (service.figures().num_queued, service.figures().num_running) == (0, 0)
                await service.load("m")
                again_s = time.monotonic()
                await until(lambda: load.answers[-1][0] > again_s, 5)
            assert load.errors, "nobody asked meanwhile"
            assert {type(error) for *_, error in load.errors} == {NotReady}, load.errors
            assert service.readiness().is_ready
            assert service.figures().num_restarts == 0

    asyncio.run(scenario())


def test_unloading_what_is_being_loaded(served: Served, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving({"m": served("detect")}, faults.settings(load=load_settings()), waits=False) as service:
            (slot,) = service._slots
            told: list[str] = []
            send = slot._send

            def noting(message: Message) -> None:
                told.append(message.kind)
                send(message)

            monkeypatch.setattr(slot, "_send", noting)
            await until(lambda: bool(slot._asked), 10)
            await asyncio.wait_for(service.unload("m"), 5)
            assert service.readiness().models[0].state == "unloaded"
            await until(lambda: slot._is_heard and not slot._asked, 20)
            await until(lambda: "unload" in told and not slot._asked, 5, lambda: f"its memory is kept: {told}")
            assert not slot.loaded
            await asyncio.wait_for(service.load("m"), 20)
            assert await service.detect("m", picture(), DetectOptions(), timeout_s=5)
            assert service.readiness().is_ready

    asyncio.run(scenario())


def test_a_model_that_ends_workers_does_not_take_the_others_along(served: Served, faults: Faults, folder: Path) -> None:
    async def scenario() -> None:
        bad = folder / offer(folder, served("detect"), 1)
        faults.begin("die", text=bad.name)
        async with serving(
            {"m": served("detect"), "bad": bad}, faults.settings(load=load_settings()), waits=False
        ) as service:
            await until(lambda: {one.state for one in service.readiness().models} == {"ready", "failed"}, 30)
            assert faults.happened == ["die", "die"]
            assert await service.detect("m", picture(), DetectOptions(), timeout_s=5)
            with pytest.raises(NotReady, match="2 workers ended"):
                await service.detect("bad", picture(), DetectOptions(), timeout_s=1)
            assert not service.readiness().is_ready

    asyncio.run(scenario())


def test_a_bad_version_at_the_start_gives_way_to_the_one_before(served: Served, faults: Faults, folder: Path) -> None:
    async def scenario() -> None:
        offer(folder, served("detect"), 1)
        await asyncio.sleep(0.01)
        offer(folder, served("detect"), 2, spoil="answer")
        async with serving({"m": folder}, faults.settings(load=load_settings()), waits=False, watched=["m"]) as service:
            await until(lambda: service.readiness().is_ready, 30, lambda: str(service.readiness()))
            model = service.readiness().models[0].model
            assert model and model.name == "v1.served"

    asyncio.run(scenario())


def test_watching_goes_on_whatever_it_meets(served: Served, faults: Faults, folder: Path, tmp_path: Path) -> None:
    class Odd:
        """First a version that is gone when it is wanted, then a disk that fails, then a version."""

        def __init__(self) -> None:
            self.asked = 0

        def newest(self, _: object) -> ServedModel:
            self.asked += 1
            if self.asked == 1:
                return replace(served("detect"), folder=tmp_path / "gone", version="gone")
            if self.asked == 2:
                raise OSError("the disk is full")
            return open_served(new, verify=False)

    new = folder / offer(folder, served("detect"), 2)

    async def scenario() -> None:
        first = folder / offer(folder, served("detect"), 1)
        shutil.move(first, tmp_path / "own" / "v1.served")
        settings = faults.settings(load=load_settings())
        async with serving({"m": tmp_path / "own"}, settings, watched=["m"], waits=False) as service:
            service._catalogue.entries["m"].versions = Odd()
            await until(lambda: service.figures().more["num_swaps"] == 1, SWAP_LIMIT_S)
            assert service.readiness().models[0].why == ""

    (tmp_path / "own").mkdir()
    asyncio.run(scenario())


def test_a_version_that_was_replaced_answers_for_a_while(
    served: Served, faults: Faults, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swapping, "_LAST_S", 0.3)

    async def scenario() -> None:
        offer(folder, served("detect"), 1)
        async with serving({"m": folder}, faults.settings(load=load_settings()), watched=["m"]) as service:
            (version,) = service.readiness().models[0].versions
            (slot,) = service._slots
            offer(folder, served("detect"), 2)
            num_swapped: list[int] = []

            async def client() -> None:
                with pytest.raises(NoSuchModel):
                    while True:
                        answer = await service.detect("m", picture(), DetectOptions(), version=version, timeout_s=5)
                        assert answer.version == version
                        num_swapped.append(int(service.figures().more["num_swaps"]))

            await asyncio.wait_for(asyncio.gather(*(client() for _ in range(8))), SWAP_LIMIT_S)
            assert sum(num_swapped), "it was refused as soon as there was another"
            await until(lambda: len(slot.loaded) == 1, 5)

    asyncio.run(scenario())


def test_a_version_larger_than_the_budget_is_refused(served: Served, faults: Faults, folder: Path) -> None:
    async def scenario() -> None:
        offer(folder, served("detect"), 1)
        settings = faults.settings(load=load_settings(), budget_bytes=1 << 30)
        async with serving({"m": folder}, settings, watched=["m"]) as service:
            service._settings = replace(settings, budget_bytes=1 << 10)
            offer(folder, served("detect"), 2)
            await until(lambda: service.figures().more["num_refused_versions"] == 1, SWAP_LIMIT_S)
            assert "are allowed" in service.readiness().models[0].why
            assert service.readiness().is_ready

    asyncio.run(scenario())


def test_a_load_that_fails_for_a_request_leaves_the_service_ready(served: Served, faults: Faults, folder: Path) -> None:
    async def scenario() -> None:
        other = folder / offer(folder, served("detect"), 1)
        settings = faults.settings(load=load_settings(), load_on_request=True)
        async with serving({"m": served("detect"), "other": other}, settings) as service:
            await service.unload("other")
            (other / "model.bin").write_bytes(b"")
            for _ in range(2):
                with pytest.raises(NotReady, match="model"):
                    await service.detect("other", picture(), DetectOptions(), timeout_s=10)
            with pytest.raises((UserError, Exception), match="model"):
                await service.load("other")
            assert service.readiness().is_ready
            assert await service.detect("m", picture(), DetectOptions(), timeout_s=5)

    asyncio.run(scenario())
