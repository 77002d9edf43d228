"""Makes the README's picture from the report of a real job, in a headless Chromium.

make demo                                    # renders the job
make test-browser                            # installs Chromium and Playwright
.venv/bin/python docs/images/make.py demo/out
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 900}


def take(page: Page, report: Path) -> None:
    """Take the picture of a whole report. The page draws what is seen, so the window is made as high as the page."""
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    page.set_viewport_size({**SIZE, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.wait_for_function(
        "() => document.querySelectorAll('.clip').length === Number(document.getElementById('count').textContent)"
    )
    page.wait_for_function("() => [...document.querySelectorAll('.clip img')].every((image) => image.naturalWidth > 0)")
    page.screenshot(path=FOLDER / "report.png")


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of a rendered job")
    report = parser.parse_args().out / "report.html"
    if not report.exists():
        parser.error(f"{report} does not exist; expected the output folder of a rendered job, such as demo/out")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        parser.error(f"there is none of {', '.join(CHROMIUM)}: `make test-browser` installs it as root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        take(browser.new_page(viewport=SIZE, color_scheme="light"), report)
        browser.close()


if __name__ == "__main__":
    main()
