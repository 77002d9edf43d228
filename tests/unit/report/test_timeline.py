"""The timeline of a job."""

from xml.etree import ElementTree

from ovi.stages import Stage
from ovi_ray.report.timeline import MAX_LANES, timeline_svg, write_timeline
from ovi_ray.scheduling.task import Task
from ovi_ray.simulation.virtual_cluster import Span

SVG = "{http://www.w3.org/2000/svg}"


def span(worker="gpu-0", stage=Stage.DENOISE, start_s=0.0, end_s=10.0, load_s=0.0):
    return Span(
        worker=worker,
        device="gpu",
        task=Task(stage=stage, items=(0,)),
        start_s=start_s,
        load_s=load_s,
        end_s=end_s,
    )


def bars(svg):
    """(kind, x, width) of every bar, in order."""
    rects = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [
        (r.get("class"), float(r.get("x")), float(r.get("width"))) for r in rects if r.find(f"{SVG}title") is not None
    ]


def names(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_bar_is_as_long_as_its_task_and_loading_has_its_own():
    svg = timeline_svg([span(load_s=2.0), span(stage=Stage.DECODE, start_s=10.0, end_s=20.0)], title="job")
    (load, load_x, load_width), (denoise, denoise_x, denoise_width), (decode, decode_x, decode_width) = bars(svg)
    assert (load, denoise, decode) == ("load", "denoise", "decode")
    assert load_x + load_width == denoise_x
    assert abs(denoise_x + denoise_width - decode_x) < 0.1
    assert abs(decode_width / load_width - 5) < 0.01


def test_a_run_of_short_tasks_is_one_bar():
    tasks = [span(start_s=i, end_s=i + 1) for i in range(1000)]
    assert len(bars(timeline_svg(tasks, title="job"))) == 1


def test_devices_are_in_their_natural_order():
    svg = timeline_svg([span(worker=f"gpu-{i}") for i in (10, 9, 1)], title="job")
    assert [name for name in names(svg) if name.startswith("gpu-")] == ["gpu-1", "gpu-9", "gpu-10"]


def test_devices_beyond_the_limit_are_counted():
    svg = timeline_svg([span(worker=f"gpu-{i}") for i in range(MAX_LANES + 7)], title="job")
    assert len(bars(svg)) == MAX_LANES
    assert "7 more devices" in names(svg)


def test_a_title_is_escaped(tmp_path):
    write_timeline(tmp_path / "t.html", [span()], title="<script>alert(1)</script>")
    assert "<script>" not in (tmp_path / "t.html").read_text(encoding="utf-8")


def test_a_page_or_an_svg_is_written_and_no_temporary_file_is_left(tmp_path):
    write_timeline(tmp_path / "t.html", [span()], title="job")
    write_timeline(tmp_path / "t.svg", [span()], title="job")
    assert (tmp_path / "t.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "t.svg").read_text(encoding="utf-8").startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.html", "t.svg"]
