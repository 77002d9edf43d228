"""The live panel of a job."""

from io import StringIO

from ovi.stages import Stage
from ovi_ray.printing import Console
from ovi_ray.protocol.progress import JobSnapshot, WorkDone
from ovi_ray.report.terminal import ProgressDisplay
from ovi_ray.scheduling.progress import Progress
from tests.support.fake_executor import info


class Terminal(StringIO):
    def isatty(self):
        return True


def panel_of(**work):
    """The lines of the panel for workers that have done this work and are idle."""
    progress = Progress(clips=9, done=4, failed=0, stages={}, eta_s=None, workers=len(work), busy=0)
    workers = dict.fromkeys(work, info(device="NVIDIA L4"))
    console = Console(file=Terminal(), width=120)
    with ProgressDisplay(console) as display:
        display.progress(
            JobSnapshot(elapsed_s=9.0, progress=progress, workers=workers, work=work, running={}, ended=())
        )
    return console.file.getvalue().splitlines()


def test_the_panel_tells_how_many_items_of_each_stage_a_device_has_finished(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    lines = panel_of(w0=WorkDone(items={Stage.ENCODE_FIRST_FRAME: 3, Stage.DECODE: 4}), w1=WorkDone())
    (decoder,) = [line for line in lines if "w0" in line]
    assert decoder.split("idle")[1].strip() == "done: first frames 3, decode 4"
    (fresh,) = [line for line in lines if "w1" in line]
    assert fresh.strip().endswith("idle")
