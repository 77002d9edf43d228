import base64
import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet
import pytest

from ovi.stages import Stage
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.output.results import Results
from ovi_ray.protocol.progress import WorkDone, WorkerTime
from ovi_ray.report.clip_data import CHUNK_ROWS
from ovi_ray.report.html import ReportLimits, ReportSummary, write_report
from ovi_ray.report.run_charts import Lane, RunCharts
from tests.support.report_pages import clips_of, unpacked

START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
NO_CONTENT = {"meta", "link", "input"}
LIMITS = ReportLimits()
TABLE_ROWS = LIMITS.tables.rows


def clip(number=0, **changes):
    clip_id = f"clip{number:05d}"
    row = {
        "clip_id": clip_id,
        "row": number + 1,
        "repeat": 0,
        "text_prompt": "A dog",
        "prompt": "A dog",
        "seed": 100 + number,
        "model_name": "720x720_5s",
        "sample_steps": 50,
        "solver_name": "unipc",
        "height": 704,
        "width": 1280,
        "status": "done",
        "video_path": f"videos/{clip_id}.mp4",
        "video_bytes": 2_500_000,
        "worker": "gpu-0",
        "decode_worker": "gpu-0",
        "node": "node-a",
        "device": "NVIDIA H200",
        "attention_backend": "sdpa",
        "dtype": "bfloat16",
        "attempts": 1,
        "encode_s": 0.5,
        "denoise_s": 60.0,
        "decode_s": 7.5,
        "finished_at": START + timedelta(minutes=1),
    }
    return row | changes


def failed(number=0, **changes):
    return clip(
        number,
        **{"status": "failed", "error": "it broke", "video_path": None, "decode_worker": None, "decode_s": None}
        | changes,
    )


def worker(**changes):
    return WorkerTime(**{"worker": "gpu-0", "node": "node-a", "device": "NVIDIA H200", "held_s": 100.0} | changes)


@pytest.fixture
def report(tmp_path):
    """Returns a function that writes a report and returns a function that parses one of its pages."""

    def write(*rows, title="my job", limits=LIMITS, manifest=None, meta_columns=(), charts=None, **summary):
        facts = {
            "clips": len(rows),
            "finished_before": 0,
            "started_at": START,
            "seconds": 3600.0,
            "workers": (worker(),),
        }
        facts |= summary
        schema = pa.schema([*RESULTS_SCHEMA, *(pa.field(name, pa.string()) for name in meta_columns)])
        table = pa.Table.from_pylist(list(rows), schema=schema)
        batches = lambda names: table.select(names).to_batches(max_chunksize=7)  # noqa: E731
        first = write_report(
            tmp_path,
            batches,
            title=title,
            summary=ReportSummary(**facts),
            limits=limits,
            manifest=manifest,
            meta_columns=meta_columns,
            charts=charts,
            key="folder",
        )
        assert first.local_path == tmp_path / "report.html"
        return lambda name="report.html": Page((tmp_path / name).read_text(encoding="utf-8"))

    return write


class Page(HTMLParser):
    """The elements of a page, each with its attributes and text. Asserts that elements are properly nested."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.elements = []
        self._open = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in NO_CONTENT:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]

    def texts(self, tag, **attributes):
        return [" ".join(element["text"].split()) for element in self.all(tag, **attributes)]

    @property
    def clips(self):
        return clips_of(self.html)

    @property
    def ids(self):
        return [clip["clip_id"] for clip in self.clips]

    @property
    def charts(self):
        return unpacked(self.all("template", id="charts")[0]["text"])

    @property
    def figures(self):
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))

    @property
    def links(self):
        return [e[name] for e in self.elements for name in ("href", "src", "poster") if name in e]


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_the_headline_counts_the_whole_job_and_the_last_run_second(report):
    before = clip(0, finished_at=START - timedelta(hours=5))
    page = report(before, clip(1), clip(2), failed(3), clips=6, finished_before=1, seconds=7200.0)()
    figures = page.figures
    assert figures["Done"] == "3of 6, 2 in the last run"
    assert figures["Failed"] == "1"
    assert figures["Not rendered"] == "2run the same command to continue"
    assert figures["Wall time"] == "2 hof the last run"
    assert figures["Clips per hour"] == "1.00"
    assert "Ended 2026-03-02 00:00 UTC · 720x720_5s in bfloat16" in page.texts("p")


def test_a_job_that_runs_says_what_is_left(report):
    page = report(clip(0), clips=3, is_running=True, seconds=60.0)()
    assert page.figures["Left"] == "2"
    assert "Not rendered" not in page.figures
    assert any(text.startswith("Running, as of 2026-03-01 22:01 UTC") for text in page.texts("p"))
    assert "data-running" in page.all("div", id="data")[0]


def test_clips_that_the_list_has_no_more_are_counted_apart_and_those_that_wait_are_shown(report):
    listed = pa.table(
        {"clip_id": ["clip00000", "clip00002"], "row": [1, 2], "repeat": [0, 0], "text_prompt": ["a", "b"]}
    )
    old = clip(1, row=1, notes="silence", model_name="960x960_5s")
    page = report(clip(0), old, clips=2, manifest=listed)()
    assert page.figures["Done"] == "1of 2, 2 in the last run"
    assert page.figures["Superseded"] == "1not in the list any more"
    assert "With notes" not in page.figures
    assert not any("960x960_5s" in text for text in page.texts("p"))
    assert page.all("a", href="#superseded")
    shown = [(clip["clip_id"], clip["status"], clip["current"]) for clip in page.clips]
    assert shown == [("clip00000", "done", True), ("clip00002", "waiting", True), ("clip00001", "done", False)]


def test_parameters_that_differ_within_the_list_stand_with_the_clips(report):
    columns = {"clip_id": ["clip00000", "clip00001"], "row": [1, 1], "repeat": [0, 1]}
    alike, differing = {"shift": [5.0, 5.0]}, {"video_guidance_scale": [3.0, 4.0]}
    page = report(clip(0), clip(1), manifest=pa.table(columns | alike | differing))()
    assert [clip["video_guidance_scale"] for clip in page.clips] == [3.0, 4.0]
    assert "shift" not in page.clips[0]


def test_the_cost_stands_with_its_currency(report):
    assert report(clip(), cost=1234.5, currency="EUR")().figures["Cost"] == "1,234.50 EUR"
    assert "Cost" not in report(clip())().figures


def test_figures_and_sections_without_content_are_left_out(report):
    page = report(clip())()
    assert not {"Superseded", "Not rendered", "Left"} & page.figures.keys()
    assert not page.all("section", id="failures")
    assert not page.all("a", href="#superseded")
    assert not page.all("dd", **{"class": "bad"})


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (26_000, "7 h 13 min"),
        (86_460, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_wall_time_is_shown_in_its_two_largest_units(report, seconds, shown):
    assert report(seconds=seconds)().figures["Wall time"] == shown


def test_a_run_that_took_no_time_has_no_clips_per_hour(report):
    assert report(seconds=0.0)().figures["Clips per hour"] == "–"


def test_seconds_per_clip_cover_only_clips_of_this_run(report):
    earlier = clip(99, denoise_s=9999.0, finished_at=START - timedelta(hours=1))
    page = report(earlier, *(clip(number, denoise_s=float(number + 1)) for number in range(10)))()
    denoise, decode = page.texts("figcaption")[:2]
    assert denoise == "denoise: median 5.50 s, 90% within 9.10 s, longest 10.0 s"
    assert decode == "decode: median 7.50 s, 90% within 7.50 s, longest 7.50 s"
    (histogram,) = page.all("svg", **{"class": "histogram"})  # none for decode, as all clips took the same time
    assert histogram["aria-label"] == "Histogram of 10 clips"
    bars = page.all("rect", **{"class": "denoise", "height": "1.000"})
    assert (bars[0]["x"], bars[-1]["x"]) == ("0", "39")


# -- failures --------------------------------------------------------------------------------------------------------


def test_failures_come_first_with_their_reason_and_row(report):
    page = report(clip(0), failed(6, error="the image <b> cannot be read", attempts=3), failed(4, repeat=2))()
    sections = [section["id"] for section in page.all("section")]
    assert sections == ["failures", "workers", "timings", "run", "clips"]
    assert page.texts("td", **{"data-label": "Row"}) == ["5, repeat 2", "7"]
    assert page.texts("td", **{"data-label": "Reason"}) == ["it broke", "the image <b> cannot be read"]
    assert page.texts("td", **{"data-label": "Attempts"}) == ["1", "3"]
    assert page.figures["Failed"] == "2"


def test_the_traceback_of_a_failed_clip_is_shown_with_its_reason_and_escaped(report):
    traceback = 'File "<string>", line 1\nRuntimeError: <b>boom</b> & more'
    page = report(failed(0, traceback=traceback), failed(1))()
    assert [element["text"] for element in page.all("pre")] == [traceback]
    assert not page.all("b")


def test_results_of_an_older_version_have_no_tracebacks(report, tmp_path):
    folder = tmp_path / "old"
    older = pa.Table.from_pylist([failed(0)], schema=RESULTS_SCHEMA).drop_columns(["traceback"])
    ledger = Results(folder)
    pa.parquet.write_table(older, folder / "results" / "part-00000000000000000001.parquet")
    ledger.append(failed(1, traceback="boom"))
    ledger.flush()
    rows = ledger.read().to_pylist()
    assert [row["traceback"] for row in rows] == [None, "boom"]
    assert len(report(*rows)().all("pre")) == 1


def test_a_failed_clip_has_no_video_and_its_reason(report):
    done, broken = report(clip(0), failed(1))().clips
    assert (done["video_path"], done["error"]) == ("videos/clip00000.mp4", None)
    assert (broken["video_path"], broken["error"]) == (None, "it broke")


def test_notes_are_counted_and_stand_on_their_clips(report):
    page = report(clip(0), clip(1, notes="shows one colour throughout; <i>"), failed(2))()
    assert page.figures["With notes"] == "1see their cards"
    assert [clip["notes"] for clip in page.clips] == [None, "shows one colour throughout; <i>", None]
    assert "With notes" not in report(clip(0))().figures


def test_many_failures_are_cut_and_counted_by_reason(report):
    rows = [failed(number, error="out of memory" if number % 3 else None) for number in range(TABLE_ROWS + 23)]
    page = report(*rows)()
    assert page.figures["Failed"] == "123"
    assert len(page.texts("td", **{"data-label": "Row"})) == TABLE_ROWS
    assert "23 more in results/" in page.texts("p")
    assert page.texts("li") == ["82 ×out of memory", "41 ×no reason was given"]


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        (
            [
                f"poison: 2 workers died; the log of the last one: /tmp/ray/logs/worker-{n}.err on node-{n}"
                for n in "abc"
            ],
            "poison: 2 workers died; the log of the last one: …",
        ),
        ([f"tried to allocate 1.{n} GiB of 79.1 GiB" for n in "123"], "tried to allocate … of …"),
        ([f"s3://bucket/frames/{n}.png is gone (404)" for n in "abc"], "… is gone (404)"),
        ([f"frames/{n}.png cannot be read" for n in "abc"], "… cannot be read"),
        (["I/O error in /data/one.mp4"] * 3, "I/O error in /data/one.mp4"),
    ],
)
def test_failures_that_differ_only_by_a_file_or_an_amount_count_as_one_reason(report, errors, shown):
    page = report(*(failed(number, error=error) for number, error in enumerate(errors * 3)))()
    assert page.texts("li") == [f"9 ×{shown}"]
    assert page.texts("td", **{"data-label": "Reason"})[0] == errors[0]


def test_reasons_that_all_differ_are_not_summarised(report):
    assert not report(*(failed(number, error=f"reason {number}") for number in range(20)))().all("li")


# -- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_is_listed_with_its_items_by_stage_and_the_backends_of_this_run(report):
    work = WorkDone(items={Stage.DECODE: 1200, Stage.ENCODE_TEXT: 8}, assists=2)
    decoder = worker(worker="c", work=WorkDone(items={Stage.DECODE: 4}))
    page = report(
        clip(0, worker="b"),
        clip(1, worker="b", attention_backend="fa3"),
        failed(2, worker="b"),
        clip(3, worker="b", finished_at=START - timedelta(hours=1)),
        workers=(worker(worker="b", node="node-z", work=work), decoder),
    )()
    assert page.texts("td", **{"data-label": "Node"}) == ["node-z", "node-a"]
    assert page.texts("td", **{"data-label": "Attention"}) == ["fa3, sdpa", "–"]
    assert page.texts("td", **{"data-label": "Done"}) == ["texts 8, decode 1,200, assists 2", "decode 4"]


def test_a_bar_shows_how_a_worker_spent_its_time(report):
    busy = worker(held_s=200.0, encode_s=20.0, denoise_s=100.0, decode_s=40.0, load_s=10.0)
    page = report(clip(), workers=(busy, worker(worker="gpu-1", held_s=50.0)))()
    first, second = page.all("svg", **{"class": "bar"})
    assert first["aria-label"] == "encode 10%, denoise 50%, decode 20%, load 5%"
    assert second["aria-label"] == "idle"
    xs = [(rect["x"], rect["width"]) for rect in page.all("rect") if rect["height"] == "1"]
    assert xs == [("0.00", "10.00"), ("10.00", "50.00"), ("60.00", "20.00"), ("80.00", "5.00")]


def test_a_worker_with_overlapping_activities_is_at_most_fully_busy(report):
    page = report(workers=(worker(held_s=100.0, denoise_s=90.0, decode_s=60.0),))()
    assert page.texts("td", **{"data-label": "Busy"})[0].endswith("100%")
    assert page.figures["Device-hours"] == "0.031 worker, 100% busy"


def test_many_workers_are_cut(report):
    names = [f"w{number}" for number in range(TABLE_ROWS + 5)]
    page = report(clip(), workers=tuple(worker(worker=name) for name in names))()
    assert len(page.texts("td", **{"data-label": "Done"})) == TABLE_ROWS
    assert "5 more in results/" in page.texts("p")


# -- escaping and links ----------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</bdi></summary></details><style>*{display:none}</style>",
    "He says <S>Hello & goodbye<E> {{ 7 * 7 }} {% raw %} <AUDCAP>rain<ENDAUDCAP>",
    "'single' \"double\" `back` &amp; &lt;b&gt;",
    "🎬🐕 عربي \u202eevil\u202c עברית 日本語",
    "first line\n\n  second line\t<!-- -->",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_verbatim_and_escaped(report, text):
    plain = report(clip(0), failed(1), title="my job")()
    page = report(
        clip(0, text_prompt=text, worker=text, device=text, node=text, image_path="a.png", solver_name=text),
        failed(1, text_prompt=text, error=text, worker=text),
        title=text,
    )()
    assert {element["tag"] for element in page.elements} == {element["tag"] for element in plain.elements}
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert [clip["text_prompt"] for clip in page.clips] == [text, text]
    assert page.all("title")[0]["text"] == page.all("h1")[0]["text"] == text
    assert page.all("td", **{"data-label": "Reason"})[0]["text"] == text


def test_no_script_but_the_pages_own_may_run(report):
    page = report(clip())()
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert not any(name.startswith("on") for element in page.elements for name in element)


def test_links_are_relative_and_nothing_is_requested_from_a_network(report):
    page = report(*(clip(number) for number in range(3)))()
    for link in page.links:
        if link != "data:,":  # an empty icon, so that browsers do not request one
            assert not urlsplit(link).scheme, link
            assert not urlsplit(link).netloc, link
            assert not link.startswith("/"), link
    markup = page.html.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )  # a namespace, not an address
    assert "http" not in markup
    assert "url(" not in markup
    assert "@import" not in markup


# -- gallery ---------------------------------------------------------------------------------------------------------


def test_a_clip_has_its_facts(report):
    (shown,) = report(clip(7, repeat=1, text_prompt="A cat", meta_shot="7b"), meta_columns=["meta_shot"])().clips
    wanted = {"row": 8, "repeat": 1, "seed": 107, "text_prompt": "A cat", "denoise_s": 60.0, "meta_shot": "7b"}
    assert wanted.items() <= shown.items()
    assert shown["finished_at"] == (START + timedelta(minutes=1)).timestamp() * 1000
    assert "traceback" not in shown


def test_a_job_without_workers_and_times_has_no_tables_of_them(report):
    nothing = dict.fromkeys(("video_bytes", "encode_s", "denoise_s", "decode_s", "worker", "decode_worker"))
    page = report(clip(0, **nothing, node=None, device=None, attention_backend=None), workers=())()
    assert page.clips[0]["denoise_s"] is None
    assert not page.all("section", id="workers")
    assert not page.all("section", id="timings")


def test_clips_are_in_the_order_of_the_prompt_list(report):
    page = report(clip(2), clip(0, repeat=1, clip_id="x"), clip(1), clip(0))()
    assert page.ids == ["clip00000", "x", "clip00001", "clip00002"]


@pytest.mark.parametrize("clips", [0, 1, CHUNK_ROWS, CHUNK_ROWS + 1])
def test_every_clip_is_on_the_page_once(report, clips):
    page = report(*(clip(number) for number in range(clips)))()
    assert page.ids == [f"clip{number:05d}" for number in range(clips)]
    assert len(page.all("template", **{"class": "clips"})) == -(-clips // CHUNK_ROWS)


def test_clips_beyond_the_limit_are_counted(report):
    page = report(*(clip(number) for number in range(9)), limits=ReportLimits(clips=6))()
    assert page.figures["Done"] == "9of 9"
    assert len(page.clips) == 6
    assert "3 more in videos/ and results/" in page.texts("p")


def test_alike_clips_need_few_bytes_each(report):
    few, many = (len(report(*(clip(number) for number in range(count)))().html) for count in (10, 1010))
    assert (many - few) / 1000 < 40


def test_the_charts_are_those_of_the_run(report):
    lane = Lane(worker="gpu-0", node="node-a", device="NVIDIA H200", bars=(("denoise", 0.0, 60.0, 1),))
    charts = report(clip(), charts=RunCharts(lanes=(lane,), clips=3, planned_s=90.0))().charts
    assert charts["lanes"][0]["bars"] == [["denoise", 0.0, 60.0, 1]]
    assert (charts["clips"], charts["planned_s"]) == (3, 90.0)


# -- files -----------------------------------------------------------------------------------------------------------


def test_pages_of_earlier_versions_are_removed_and_other_files_stay(report, tmp_path):
    for name in ("report-2.html", "report-17.html", "report-draft.html", "report-2.html.bak", "results.html"):
        (tmp_path / name).write_text("mine")
    report(clip())
    left = {"report.html", "report-draft.html", "report-2.html.bak", "results.html"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_report_that_cannot_be_written_leaves_no_partial_file(report, tmp_path):
    (tmp_path / "report.html").mkdir()  # a folder is in the way
    (tmp_path / "report.html" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"report\.html"):
        report(clip(), title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html" / "notes.txt").read_text() == "mine"


def test_the_same_job_gives_the_same_bytes_whatever_the_order_of_its_rows(report, tmp_path):
    rows = [clip(0, worker="b"), clip(1, worker="a", dtype="float32"), failed(2), clip(3, worker="c", node="x")]
    report(*rows)
    first = (tmp_path / "report.html").read_bytes()
    report(*reversed(rows))
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_job_without_a_finished_clip_has_a_page(report):
    page = report(clips=3, workers=())()
    assert page.figures["Done"] == "0of 3"
    assert page.figures["Not rendered"] == "3run the same command to continue"
    assert page.clips == []
    assert [section["id"] for section in page.all("section")] == ["run", "clips"]


def test_a_start_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match=r"started_at is .* expected a time with a time zone"):
        ReportSummary(clips=1, finished_before=0, started_at=datetime(2026, 3, 1), seconds=1.0, workers=())


def test_a_report_needs_neither_torch_nor_ray():
    code = "import sys, ovi_ray.report.html; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
