"""The page in a browser: a picture dropped on it, boxes drawn, mistakes told. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steadyolo.serve.served_model import ServedModel
from tests.serving import Server, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
LIMIT_MS = 10_000


@pytest.fixture(scope="module")
def server(served: Callable[..., ServedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), f"small={served('detect').folder}") as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, which may ask this server and nobody else."""
    context = browser.new_context(locale="en-US", viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.set_default_timeout(LIMIT_MS)
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(f"http://{server.address}/")
    yield page
    assert all(url.startswith((f"http://{server.address}/", "blob:")) for url in page.asked), page.asked
    context.close()


def show(page: Any, name: str) -> None:
    """Keep a picture of the page where somebody asked for it."""
    if folder := os.environ.get("STEADYOLO_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_a_dropped_picture_shows_its_boxes(page: Any, served: Callable[..., ServedModel]) -> None:
    golden = (served("detect").folder / "golden.png").read_bytes()
    page.get_by_role("status").filter(has_text="Ready.").wait_for()
    page.get_by_label("Least confidence").fill("0.05")
    page.evaluate(
        """([bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "golden.png", { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [list(golden)],
    )
    page.get_by_role("status").filter(has_text="ms in all on").wait_for()
    rows = page.locator("#objects tr")
    assert rows.count() > 0
    painted = page.evaluate(
        """() => {
            const canvas = document.getElementById("canvas"), context = canvas.getContext("2d");
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
            const seen = new Set();
            for (let at = 0; at < data.length; at += 4) seen.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
            return [canvas.width, canvas.height, seen.size];
        }"""
    )
    assert painted[0] > 1 and painted[2] > 10
    rows.first.hover()
    page.locator("#objects tr.on").wait_for()
    show(page, "page")
    assert not page.complaints


def test_a_chosen_file_that_is_no_picture_is_told(page: Any) -> None:
    page.locator("#file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "What to do:" in alert.inner_text()
    assert page.locator("#shown").is_hidden()
    show(page, "page-error")


def test_everything_has_a_name_and_can_be_reached(page: Any) -> None:
    for label in ("Model", "Least confidence"):
        assert page.get_by_label(label).is_visible()
    assert page.locator("html").get_attribute("lang") == "en"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"


def test_what_can_be_asked_is_listed(page: Any, server: Server) -> None:
    page.goto(f"http://{server.address}/docs")
    page.get_by_text("/v1/models/{name}/detect").click()
    assert page.get_by_text("agnostic_nms").is_visible()
    show(page, "docs")
    assert not page.complaints


def test_a_token_is_asked_for(browser: Any, served: Callable[..., ServedModel], tmp_path: Path) -> None:
    token = "a-token-of-this-test"
    with serving(tmp_path, f"small={served('detect').folder}", STEADYOLO_TOKENS=token) as server:
        page = browser.new_page(locale="en-US")
        page.set_default_timeout(LIMIT_MS)
        page.goto(f"http://{server.address}/")
        page.get_by_label("Token").fill(token)
        page.get_by_label("Token").blur()
        page.get_by_role("status").filter(has_text="Ready.").wait_for()
        page.close()
