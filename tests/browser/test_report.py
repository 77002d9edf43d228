"""The report of ten thousand clips in a real Chromium."""

import csv
import json

import pytest

from ovi_ray.storage.paths import to_location
from tests.browser.conftest import CLIPS
from tests.support.report_job import FAILED_EVERY, HOSTILE, SCALES, SEEDS, write_job
from tests.support.report_server import running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.browser
TAKES = len(SEEDS) * len(SCALES)
FAILED = CLIPS // FAILED_EVERY
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def count_is(page, text):
    page.wait_for_function("text => document.getElementById('count').textContent === text", arg=text)


def until(page, condition):
    """Wait for an expression to be true. As a function: the page's own policy allows no text to be run."""
    page.wait_for_function(f"() => {condition}")


def to_clips(page):
    page.evaluate("document.getElementById('clips').scrollIntoView()")
    page.wait_for_selector(".clip")


def posters_loaded(page):
    return page.evaluate("performance.getEntriesByType('resource').filter(e => e.name.includes('/posters/')).length")


def test_ten_thousand_clips_are_a_few_cards_in_the_document_and_few_posters_are_loaded(report, record_property):
    paint = report.evaluate("performance.getEntriesByType('paint').map(e => e.startTime)[0]")
    heap = report.evaluate("performance.memory.usedJSHeapSize / 1e6")
    record_property("first_paint_ms", paint)
    record_property("heap_mb", heap)
    print(f"\n{CLIPS} clips: first paint after {paint:.0f} ms, {heap:.0f} MB of JavaScript heap")
    count_is(report, "10,000")
    assert posters_loaded(report) == 0
    to_clips(report)
    assert 4 <= report.locator(".clip").count() < 60
    before = report.locator(".clip").first.get_attribute("id")
    report.evaluate("scrollTo(0, document.body.scrollHeight)")
    report.wait_for_function("id => !document.getElementById(id)", arg=before)
    last = report.wait_for_selector(f".clip[aria-posinset='{CLIPS}']")
    assert f"row {(CLIPS - 1) // TAKES + 1}" in last.inner_text()
    assert report.locator(".clip").count() < 60
    assert posters_loaded(report) < 200


def test_search_and_every_filter_narrow_the_list(report):
    report.fill("#search", "whale scene")
    prompts = -(-CLIPS // TAKES)
    whales = sum(min(TAKES, CLIPS - TAKES * prompt) for prompt in range(prompts) if prompt % 4 == 3)
    count_is(report, f"{whales:,} of 10,000")
    report.fill("#search", "")
    report.select_option("#status", "failed")
    count_is(report, f"{FAILED} of 10,000")
    report.select_option("#status", "")
    report.select_option("#column", "meta_shot")
    report.select_option("#value", "shot-07")
    shots = sum(min(TAKES, CLIPS - TAKES * prompt) for prompt in range(prompts) if prompt % 25 == 7)
    count_is(report, f"{shots} of 10,000")
    report.select_option("#column", "video_guidance_scale")
    report.select_option("#value", "4")
    report.select_option("#device", "AMD MI300X")
    report.select_option("#model_name", "960x960_10s")
    report.wait_for_function(
        "Number(document.getElementById('count').textContent.split(' ')[0].replace(',', '')) < 1000"
    )
    to_clips(report)
    assert "video_guidance_scale 4" in report.locator(".clip .line").first.inner_text()


def test_an_anchor_leads_to_its_row_and_a_hostile_prompt_is_text(show, job):
    page = show((job / "report.html").as_uri() + "#row-237")
    until(page, "document.activeElement.closest('.clip')?.textContent.includes('row 237')")
    page.evaluate("location.hash = '#row-3'")
    until(page, "document.activeElement.closest('.clip')?.textContent.includes('row 3 ')")
    assert page.locator(".clip .text", has_text="<script>").first.inner_text() == HOSTILE
    assert page.title() == "generated"
    assert page.evaluate("document.scripts.length") == 1


def test_a_failure_opens_with_its_reason(report):
    report.select_option("#status", "failed")
    count_is(report, f"{FAILED} of 10,000")
    to_clips(report)
    report.locator(".clip .poster").first.click()
    assert report.locator("#clip-error").inner_text() == "CUDA out of memory"
    assert report.locator("#player video").count() == 0
    report.keyboard.press("ArrowRight")
    until(report, "document.getElementById('clip-title').textContent.startsWith('row 17')")
    report.keyboard.press("Escape")
    report.wait_for_selector("#clip", state="hidden")


def test_the_keyboard_reaches_opens_and_stars_clips(report):
    report.keyboard.press("/")
    assert report.evaluate("document.activeElement.id") == "search"
    report.evaluate("location.hash = '#row-1'")
    until(report, "document.activeElement.closest('.clip')")
    report.keyboard.press("ArrowRight")
    assert "repeat 1" in report.evaluate("document.activeElement.closest('.clip').textContent")
    report.keyboard.press("s")
    report.wait_for_selector(".clip .star[aria-pressed='true']")
    report.keyboard.press("Enter")
    report.wait_for_selector("#clip[open]")
    assert report.locator("#star").inner_text() == "★ Starred"


def test_takes_of_a_prompt_stand_in_a_grid_play_on_hover_and_are_picked(report):
    to_clips(report)
    report.click("#as-grid")
    report.wait_for_selector("#grid .take")
    assert report.locator("#grid thead th").all_inner_texts() == [f"seed {seed}" for seed in SEEDS]
    scales = [f"video_guidance_scale {scale:g}" for scale in SCALES]
    assert report.locator("#grid th[scope=row]").all_inner_texts() == scales
    assert report.locator("#grid .take").count() == TAKES
    third = report.locator("#grid .take").nth(2)
    third.locator(".poster").hover()
    until(report, "document.querySelector('#grid video')?.currentTime > 0")
    report.mouse.move(0, 0)
    report.wait_for_selector("#grid video", state="detached")
    third.locator(".star").click()
    report.select_option("#rows", "seed")
    report.select_option("#columns", "video_guidance_scale")
    assert report.locator("#grid tbody tr").count() == len(SEEDS)
    with report.expect_download() as download:
        report.click("#picks")
    rows = list(csv.DictReader(download.value.path().read_text(encoding="utf-8").splitlines()))
    assert download.value.suggested_filename == "picks.csv"
    assert [(row["clip_id"], row["seed"], row["video_guidance_scale"]) for row in rows] == [(f"{2:020x}", "2", "3")]


def test_stars_stay_when_the_page_is_opened_again(report, job):
    to_clips(report)
    report.locator(".clip .star").first.click()
    report.reload()
    report.wait_for_selector("html[data-ready]")
    report.check("#starred")
    count_is(report, "1 of 10,000")


def test_the_timeline_is_drawn_zooms_and_tells_what_a_bar_is(report):
    report.locator("#timeline").scroll_into_view_if_needed()
    pixels = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert report.locator("#timeline").evaluate(pixels) > 3
    all_of_it = report.locator("#timeline").evaluate("c => c.toDataURL()")
    report.click("[data-zoom=in]")
    assert report.locator("#timeline").evaluate("c => c.toDataURL()") != all_of_it
    report.click("[data-zoom=all]")
    assert report.locator("#timeline").evaluate("c => c.toDataURL()") == all_of_it
    report.locator("#timeline").hover(position={"x": 600, "y": 30})
    assert "gpu-0 (NVIDIA H200 on node-a)" in report.locator("#bar").inner_text()
    assert "planned for" in report.locator("#throughput-caption").inner_text()


def test_served_the_page_plays_seeks_follows_and_saves_stars(show, job):
    with running_server(to_location(job)) as site:
        page = show(site)
        answers = []
        page.on("response", lambda answer: answers.append((answer.url, answer.status)))
        to_clips(page)
        page.locator(".clip .poster").first.click()
        until(page, "document.querySelector('#player video').currentTime > 0")
        page.evaluate("document.querySelector('#player video').pause()")
        page.evaluate("document.querySelector('#player video').currentTime = 3")
        until(page, "(v => !v.seeking && Math.abs(v.currentTime - 3) < 0.1)(document.querySelector('#player video'))")
        assert 206 in {status for url, status in answers if url.endswith(".mp4")}
        page.keyboard.press("Escape")
        page.locator(".clip .star").first.click()
        wait_until(lambda: (job / "picks.csv").exists())
        assert (job / "picks.csv").read_text().splitlines() == ["clip_id", f"{0:020x}"]
        progress = {"state": "rendering", "done": 7, "clips": 9, "failed": 0, "devices": [], "remaining": None}
        (job / "progress.json").write_text(json.dumps(progress))
        until(page, "document.getElementById('live').textContent.includes('7 of 9 done')")
        (job / "picks.csv").unlink()
        (job / "progress.json").unlink()


def test_a_page_that_is_open_takes_over_a_newer_report_and_keeps_its_filter(show, tmp_path):
    write_job(tmp_path, 24)
    with running_server(to_location(tmp_path)) as site:
        page = show(site)
        page.fill("#search", "fox")
        count_is(page, "12 of 24")
        newer = tmp_path / "newer"
        newer.mkdir()
        write_job(newer, 240)
        (tmp_path / "report.html").write_bytes((newer / "report.html").read_bytes())
        count_is(page, "60 of 240")
        assert page.input_value("#search") == "fox"


def test_superseded_clips_stand_in_a_section_of_their_own_which_filters_and_keys_reach(show, tmp_path):
    write_job(tmp_path, 24, superseded=12)
    page = show((tmp_path / "report.html").as_uri())
    count_is(page, "24")
    assert page.locator("#superseded-count").inner_text() == "12"
    page.evaluate("document.getElementById('superseded').scrollIntoView()")
    page.wait_for_selector("#superseded-list .clip")
    assert page.locator("#list .clip[aria-setsize='24']").count() == page.locator("#list .clip").count()
    assert "row 3" in page.locator("#superseded-list .clip[aria-posinset='1']").inner_text()
    page.locator("#superseded-list .poster").first.click()
    assert page.locator("#takes").is_disabled()
    page.keyboard.press("ArrowLeft")
    until(page, "document.getElementById('clip-title').textContent.startsWith('row 2')")
    page.keyboard.press("Escape")
    page.fill("#search", "broken")
    count_is(page, "0 of 24")
    page.click("#as-grid")
    until(page, "document.querySelectorAll('#superseded-list .clip').length > 0")
    assert page.locator("#grid .take").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_in_either_scheme(show, job, scheme):
    page = show((job / "report.html").as_uri(), color_scheme=scheme, **PHONE)
    to_clips(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".clip .poster").first.tap()
    page.wait_for_selector("#clip[open]")
    assert page.locator("#clip").bounding_box()["width"] <= 390


CONTRAST = """() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
  };
  const bad = [];
  for (const element of document.querySelectorAll('main *:not(canvas, svg, svg *, option, template)')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.offsetParent || element.disabled) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${element.tagName} ${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(bad)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_and_every_control_has_a_name(show, job, scheme):
    page = show((job / "report.html").as_uri(), color_scheme=scheme)
    to_clips(page)
    assert page.evaluate(CONTRAST) == []
    unnamed = """() => [...document.querySelectorAll('button, input, select, [role=img], [role=region]')]
      .filter((e) => !['aria-label', 'aria-labelledby'].some((name) => e.getAttribute(name)))
      .filter((e) => !e.textContent.trim() && !e.labels?.length)
      .map((e) => e.outerHTML.slice(0, 100))"""
    assert page.evaluate(unnamed) == []
