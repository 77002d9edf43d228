"""A list that changes after it was rendered, through the commands: only what is new costs anything."""

import contextlib
import csv
import json

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.errors import JobStopped
from ovi_ray.rendering import render
from tests.support.cli import ROOT
from tests.support.files import snapshot
from tests.support.jobs import result_rows, write_prompts
from tests.support.rendered_jobs import PlaceholderExecutor


class Commands:
    """`ovi-ray` on the list and the output folder of one job."""

    def __init__(self, folder, ckpt_dir):
        self.folder, self.out, self.ckpt_dir = folder, folder / "out", ckpt_dir
        self.list = folder / "prompts.csv"

    def __call__(self, *arguments, code=0, answer=None):
        given = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, given, input=answer, env={"COLUMNS": "200"})
        assert result.exit_code == code, (result.stderr, result.exception)
        return result

    def render(self, *options, rows=None, code=0):
        """Render the list, written with these rows; returns the outcome and what was told."""
        if rows is not None:
            write_prompts(self.list, *rows)
        where = ("--ckpt-dir", self.ckpt_dir, "--out", self.out, "--sample-steps", 2, "--dtype", "float32", "--json")
        result = self("render", self.list, *where, *options, code=code)
        return json.loads(result.stdout) if result.stdout else {}, result.stderr

    def rows(self):
        return result_rows(self.out)

    def videos(self):
        """When each video was written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.out / "videos").iterdir()}

    def job_file(self, **changes):
        """Change the job file that the last run left."""
        path = self.out / "job.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def ovi(tmp_path, tiny_dir, monkeypatch):
    def executor(job, config):
        return contextlib.nullcontext(PlaceholderExecutor())

    monkeypatch.setitem(render.__kwdefaults__, "open_executor", executor)
    return Commands(tmp_path, tiny_dir)


def prompts(*texts, **columns):
    return [{"text_prompt": text, **columns} for text in texts]


def test_inserting_sorting_and_deleting_rows_of_a_finished_list_renders_exactly_the_new_clips(ovi):
    texts = [f"clip {number}" for number in range(38)] + ["twice", "twice"]
    outcome, _ = ovi.render(rows=prompts(*texts))
    assert (outcome["done"], outcome["superseded"]) == (40, 0)
    before = ovi.videos()

    inserted = ["new at the top", *texts[:7], "new inside", *texts[7:], "twice"]
    outcome, _ = ovi.render(rows=prompts(*inserted))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (3, 40, 0)
    outcome, _ = ovi.render(rows=prompts(*sorted(inserted, reverse=True)))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (0, 43, 0)
    outcome, told = ovi.render(rows=prompts(*inserted[5:], "new at the end"))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (1, 38, 5)
    assert "5 finished clips are not asked for by this list" in told
    after = ovi.videos()
    assert {name: after[name] for name in before} == before

    rows = ovi.rows()
    assert len(rows) == 44
    superseded = [row["text_prompt"] for row in rows if not row["current"]]
    assert sorted(superseded) == sorted(inserted[:5])
    listed = sorted((row["row"], row["text_prompt"]) for row in rows if row["current"])
    assert listed == list(enumerate([*inserted[5:], "new at the end"], 1))
    assert len(pyarrow.parquet.read_table(ovi.out / "manifest.parquet")) == 39


def test_superseded_clips_are_removed_by_prune_after_asking(ovi):
    ovi.render(rows=prompts("a fox", "a dog"))
    outcome, told = ovi.render("--seed", 7, rows=prompts("a dog"))
    assert (outcome["done"], outcome["superseded"]) == (1, 2)
    assert "1 finished clip has a prompt of this list with another seed; keep it with --keep-seeds" in told
    before = ovi.videos()
    superseded = next(row["clip_id"] for row in ovi.rows() if not row["current"])
    (ovi.out / "picks.csv").write_text(f"clip_id\n{superseded}\n")
    for answer in ("n\n", "\n"):
        told = ovi("prune", ovi.out, answer=answer).stderr
        assert "nothing was removed" in told
        assert "1 of them starred" in told
    ovi("prune", ovi.out, answer="", code=2)  # nobody is there to answer
    assert ovi.videos() == before
    assert len(ovi.rows()) == 3
    assert "2 superseded clips removed" in ovi("prune", ovi.out, answer="y\n").stderr
    (kept,) = ovi.rows()
    assert [path.stem for path in (ovi.out / "videos").iterdir()] == [kept["clip_id"]]
    outcome = json.loads(ovi("prune", ovi.out, "--yes", "--json").stdout)
    assert outcome == {"superseded": 0, "bytes": 0, "starred": 0, "removed": 0}


def test_prune_of_what_is_no_output_folder_is_refused_and_writes_nothing(ovi):
    assert "manifest.parquet" in ovi("prune", ovi.folder, "--yes", code=2).stderr
    assert not list(ovi.folder.iterdir())


# -- seeds of an earlier version ---------------------------------------------------------------------------------------


def test_seeds_of_the_row_are_told_before_anything_is_rendered_and_once_kept_they_stay_kept(ovi):
    texts = ("a fox", "a dog", "a fox")
    ovi.render(rows=[{"text_prompt": text, "seed": str(1_000_000 * row)} for row, text in enumerate(texts)])
    ovi.job_file(format=3, keeps_seeds=None)  # as the earlier version wrote it
    before = [snapshot(ovi.out / name) for name in ("videos", "results")]
    _, told = ovi.render(rows=prompts(*texts), code=2)
    assert "3 finished clips have prompts of this list with other seeds" in told
    assert "--keep-seeds" in told
    assert [snapshot(ovi.out / name) for name in ("videos", "results")] == before

    outcome, _ = ovi.render("--keep-seeds", rows=prompts("a cat", *texts))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (1, 3, 0)
    outcome, _ = ovi.render(rows=prompts("a fox", "a fox", "an owl", "a dog", "a cat"))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (1, 4, 0)
    outcome, _ = ovi.render("--no-keep-seeds")
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (3, 2, 3)


# -- parts of a list ---------------------------------------------------------------------------------------------------


def with_bad_rows(folder):
    """A list of six rows, of which three cannot be rendered."""
    path = folder / "prompts.csv"
    path.write_text(
        "text_prompt,sample_steps,image_path,meta_shot\n"
        "a fox,2,,1\na dog,none,nowhere.png,2\n,2,,3\na cat,2,,4\nan owl,2,,5\na bat,2,gone.png,6\n"
    )


def test_a_dry_run_tells_what_there_is_to_do_with_time_and_cost_and_writes_nothing(ovi):
    with_bad_rows(ovi.folder)
    profile = ("--cluster", ROOT / "cluster" / "profiles" / "b.yaml")
    before = snapshot(ovi.folder)
    outcome, told = ovi.render("--dry-run", "--rows", "1-4", "--limit", 1, *profile, code=2)
    assert snapshot(ovi.folder) == before
    assert {name: outcome[name] for name in ("new", "finished", "left", "superseded", "bad_rows")} == {
        "new": 1,
        "finished": 0,
        "left": 2,
        "superseded": 0,
        "bad_rows": 3,
    }
    assert outcome["qualities"] == {"exact": 1}
    assert [bad["row"] for bad in outcome["rejected"]] == [2, 3, 6]
    assert outcome["eta_s"] > 0
    assert all(part["device_hours"] > 0 for part in outcome["classes"])
    assert "nowhere.png" in told


def test_bad_rows_are_skipped_on_request_and_listed_with_their_reasons_until_they_are_mended(ovi):
    with_bad_rows(ovi.folder)
    assert "text_prompt is empty" in ovi.render(code=2)[1]
    assert not ovi.out.exists()
    assert "--rows is 2-3; expected rows of clips, which are 1, 4-5" in ovi.render(
        "--skip-bad-rows", "--rows", "2-3", code=2
    )[1].replace("\n", " ")
    outcome, _ = ovi.render("--skip-bad-rows", "--rows", "1,5-6")
    assert (outcome["done"], outcome["left"], outcome["bad_rows"]) == (2, 1, 3)
    with (ovi.out / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [row["meta_row"] for row in rejected] == ["2", "3", "6"]
    assert "sample_steps is 'none'" in rejected[0]["meta_reason"]
    assert "nowhere.png" in rejected[0]["meta_reason"]
    assert rejected[2]["image_path"] == str(ovi.folder / "gone.png")

    told = ovi.render("--skip-bad-rows", "--dry-run")[0]
    assert (told["new"], told["finished"]) == (1, 2)
    assert [(pace["quality"], pace["clips"]) for pace in told["pace"]] == [("exact", 2)]
    outcome, _ = ovi.render("--limit", 1, rows=prompts("a fox", "a cat", "an owl", "a bat", sample_steps="2"))
    assert (outcome["done"], outcome["finished_before"], outcome["left"], outcome["bad_rows"]) == (1, 2, 1, 0)
    assert not (ovi.out / "rejected.csv").exists()


@pytest.mark.parametrize("given", ["0", "2-1", "a", "", "1,,2", "1-2-3", "7"])
def test_rows_that_the_list_has_not_are_refused(ovi, given):
    _, told = ovi.render("--rows", given, "--dry-run", rows=prompts("a fox"), code=2)
    assert "--rows" in told


# -- another try -------------------------------------------------------------------------------------------------------


def test_a_row_is_rendered_again_with_a_new_seed_which_stays_when_the_list_grows(ovi):
    ovi.render(rows=prompts("a fox", "a dog"))
    first = ovi.rows()
    assert "nothing to retry: 2 clips, all finished" in ovi("retry", ovi.out).stderr
    unchanged = ovi("retry", ovi.out, "--rows", 2, "--json")
    assert "these rows are finished" in unchanged.stderr
    assert json.loads(unchanged.stdout)["finished_before"] == 2
    again = ovi("retry", ovi.out, "--rows", 2, "--new-seed", "--json")
    outcome = json.loads(again.stdout)
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (1, 1, 1)
    assert "other seeds" not in again.stderr
    assert "another seed" not in again.stderr
    fox, *dogs = ovi.rows()
    assert fox == first[0]
    assert {row["seed"]: row["current"] for row in dogs}.pop(first[1]["seed"]) is False

    outcome, _ = ovi.render(rows=prompts("a cat", "a fox", "a dog"))
    assert (outcome["done"], outcome["finished_before"], outcome["superseded"]) == (1, 2, 1)
    ovi("retry", ovi.folder, code=2)


def test_a_job_that_is_stopped_prints_json_which_names_its_folder(ovi, monkeypatch):
    @contextlib.contextmanager
    def stopped(job, config):
        raise JobStopped("stopped (SIGINT)")
        yield

    monkeypatch.setitem(render.__kwdefaults__, "open_executor", stopped)
    outcome, _ = ovi.render(rows=prompts("a fox"), code=130)
    assert outcome["error"]["kind"] == "interrupted"
    assert outcome["error"]["output_dir"] == str(ovi.out)


def test_seeds_that_are_swept_are_not_said_to_be_kept(ovi):
    ovi.render(rows=prompts("a fox"))
    _, told = ovi.render("--sweep", "seed=1-2", "--dry-run")
    assert "1 finished clip has a prompt of this list with another seed" in told
    assert "--keep-seeds" not in told
