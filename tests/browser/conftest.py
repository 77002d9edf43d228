"""A real Chromium, and a generated job of ten thousand clips."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.report_job import write_job
from tests.support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CLIPS = 10_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_job(folder, CLIPS)
    return folder


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser does it")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: make test-browser installs it as root")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        yield started
        started.close()


@pytest.fixture
def show(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Opens an address and waits until its clips are there. Fails if the page had an error."""
    contexts, errors = [], list[str]()

    def open_page(address: str, **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def report(show: "Callable[..., Page]", job: Path) -> "Page":
    """The report as a file."""
    return show((job / "report.html").as_uri())
