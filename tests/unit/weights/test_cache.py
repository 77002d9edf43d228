"""Checkpoint folders in a store: fetched once to each machine, again when they change, and complete or absent."""

import subprocess
import sys
import time

import numpy as np
import pytest

from ovi.config import MODEL_SPECS, Component
from ovi.errors import CheckpointMismatch
from ovi.weights.digest import fingerprint
from ovi.weights.layout import ARCHITECTURE, TOKENIZER, model_files
from ovi_ray.errors import InputError, StorageUnavailable
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.protocol.messages import EncodeFirstFrame, Preload, TaskRequest
from ovi_ray.scheduling.task import FailureKind
from ovi_ray.storage.paths import to_location
from ovi_ray.weights.cache import cache_folder, local_checkpoint, missing_files
from ovi_ray.weights.eviction import VARIABLE
from ovi_ray.workers.actor import Worker, WorkerConfig
from tests.support.stores import overridden

MODEL = "720x720_5s"
TRANSFORMER = "Ovi/model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def ckpts(s3_bucket, tiny_dir):
    """The small checkpoint in a store."""
    folder = to_location(f"{s3_bucket}/ckpts")
    for path in tiny_dir.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tiny_dir)).upload(path)
    return folder


def fetched(folder, *model_names):
    told = []
    local_checkpoint(folder, model_names, tell=told.append)
    return [line.split()[1].removeprefix(f"{folder}/") for line in told]


def problems_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


def job(ckpts, tmp_path, **options):
    given = {"text_prompt": "a fox", "ckpt_dir": ckpts, "output_dir": tmp_path / "out", "dtype": "float32"}
    return JobSpec.from_options(**given | options)


def fetches(told):
    return [line for line in told if line.startswith("fetching")]


def test_a_folder_on_a_disk_is_used_where_it_is(tiny_dir, cache):
    assert local_checkpoint(to_location(tiny_dir), [MODEL]) == tiny_dir
    assert not cache.exists()


def test_what_a_model_needs_is_fetched_and_nothing_else(ckpts, tiny_dir):
    folder = local_checkpoint(ckpts, [MODEL])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}
    assert files == {*model_files(MODEL_SPECS[MODEL]), ARCHITECTURE}
    assert fingerprint(folder, MODEL) == fingerprint(tiny_dir, MODEL)


def test_the_sizes_alone_need_no_weights(ckpts):
    assert fetched(ckpts) == [ARCHITECTURE]


def test_files_are_fetched_once_and_those_of_another_model_when_it_is_asked_for(ckpts):
    assert len(fetched(ckpts, MODEL)) == 7
    assert fetched(ckpts, MODEL) == []
    assert fetched(ckpts, "960x960_5s") == ["Ovi/model_960x960.safetensors"]


def test_a_file_that_changed_in_the_store_is_fetched_again(ckpts):
    folder = local_checkpoint(ckpts, [MODEL])
    content = (ckpts / TRANSFORMER).read_bytes()
    time.sleep(1.1)  # a store tells times of change in seconds
    (ckpts / TRANSFORMER).write_bytes(content[:-1] + b"\0")
    (ckpts / TOKENIZER).write_bytes(b"another size")
    assert fetched(ckpts, MODEL) == [TRANSFORMER, TOKENIZER]
    assert (folder / TOKENIZER).read_bytes() == b"another size"


def test_a_file_that_is_gone_from_the_store_is_gone_here(ckpts):
    folder = local_checkpoint(ckpts, [MODEL])
    (ckpts / TRANSFORMER).unlink()
    assert missing_files(ckpts, MODEL) == [TRANSFORMER]
    assert fetched(ckpts, MODEL) == []
    assert not (folder / TRANSFORMER).exists()


def test_a_copy_that_was_damaged_is_fetched_again(ckpts):
    folder = local_checkpoint(ckpts, [MODEL])
    (folder / TRANSFORMER).write_bytes(b"cut")
    assert fetched(ckpts, MODEL) == [TRANSFORMER]


FETCH = "import sys; from ovi_ray.weights.cache import *; from ovi_ray.storage.paths import to_location; "


def test_processes_that_start_together_fetch_each_file_once(ckpts):
    code = FETCH + f"local_checkpoint(to_location({str(ckpts)!r}), [{MODEL!r}], tell=print)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum(map(len, told)) == 7


def test_a_process_that_is_killed_half_way_leaves_nothing_under_the_name(ckpts):
    stopped = (
        "import os; from ovi_ray.storage.object_store import ObjectStore\n"
        "def half(store, key, target):\n"
        "    content = store.read(key)\n"
        "    target.write_bytes(content[:10])\n"
        "    os._exit(9) if key.endswith('/model.safetensors') else target.write_bytes(content)\n"
        "ObjectStore.download = half\n"
    )
    code = FETCH + stopped + f"local_checkpoint(to_location({str(ckpts)!r}), [{MODEL!r}])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    folder = cache_folder(ckpts)
    assert list(folder.rglob("*.tmp-*model.safetensors"))
    assert not (folder / TRANSFORMER).exists()
    assert TRANSFORMER in fetched(ckpts, MODEL)
    assert not list(folder.rglob("*.tmp-*"))
    assert (folder / TRANSFORMER).read_bytes() == (ckpts / TRANSFORMER).read_bytes()


def test_a_download_that_breaks_off_leaves_nothing_under_the_name(ckpts):
    broken = overridden(ckpts, download=lambda key, target: target.write_bytes(b"some"))
    with pytest.raises(StorageUnavailable, match=r"4 of \d+ bytes arrived"):
        local_checkpoint(broken, [MODEL])
    assert not list(cache_folder(ckpts).rglob(ARCHITECTURE))


def test_a_file_that_changes_while_it_is_fetched_is_not_taken_for_whole(ckpts):
    def change_and_download(key, target):
        ckpts.store.write(key, b"new")
        ckpts.store.download(key, target)

    local_checkpoint(ckpts)
    with pytest.raises(StorageUnavailable, match="bytes arrived"):
        local_checkpoint(overridden(ckpts, download=change_and_download), [MODEL])


def test_weights_that_do_not_fit_on_the_disk_are_told_before_they_are_fetched(ckpts):
    told = []
    with pytest.raises(InputError) as caught:
        local_checkpoint(ckpts, free_bytes=1 << 60, tell=told.append)
    (problem,) = caught.value.problems
    assert problem.file == str(ckpts)
    assert problem.value.startswith("0.0 GB of weights to fetch, and ")
    assert problem.value.endswith(f" GB are free in {cache_folder(ckpts)}")
    assert told == []


OTHER = "960x960_5s"
OTHER_TRANSFORMER = "Ovi/model_960x960.safetensors"


def bound_to(monkeypatch, *files):
    """Let the cache hold so many bytes as these files have, and no more."""
    monkeypatch.setenv(VARIABLE, repr((sum(path.stat().st_size for path in files) + 1) / 1e9))


def test_a_cache_that_is_full_gives_up_what_was_not_used_for_longest(ckpts, tiny_dir, monkeypatch):
    folder = local_checkpoint(ckpts, [MODEL])
    shared = [path for path in folder.rglob("[!.]*") if path.is_file() and path != folder / TRANSFORMER]
    bound_to(monkeypatch, *shared, tiny_dir / OTHER_TRANSFORMER)
    assert fetched(ckpts, OTHER) == [OTHER_TRANSFORMER]
    assert not (folder / TRANSFORMER).exists()
    assert fetched(ckpts, OTHER) == []
    assert fetched(ckpts, MODEL) == [TRANSFORMER]
    assert not (folder / OTHER_TRANSFORMER).exists()


def test_what_another_process_uses_is_not_given_up_and_what_none_uses_is(ckpts, monkeypatch):
    hold = FETCH + f"local_checkpoint(to_location({str(ckpts)!r}), [{MODEL!r}]); print('ready', flush=True); input()"
    user = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert user.stdout.readline() == "ready\n"
    folder = cache_folder(ckpts)
    bound_to(monkeypatch, *(path for path in folder.rglob("[!.]*") if path.is_file()))
    (problem,) = problems_of(lambda: local_checkpoint(ckpts, [OTHER]))
    assert VARIABLE in problem
    assert (folder / TRANSFORMER).exists()
    user.communicate("\n")
    assert fetched(ckpts, OTHER) == [OTHER_TRANSFORMER]
    assert not (folder / TRANSFORMER).exists()


@pytest.mark.parametrize("bound", ["0", "-1", "much", "nan", "inf"])
def test_a_bound_that_is_no_number_of_gigabytes_is_refused(ckpts, monkeypatch, bound):
    monkeypatch.setenv(VARIABLE, bound)
    (problem,) = problems_of(lambda: local_checkpoint(ckpts))
    assert problem == f"environment: {VARIABLE} is {bound!r}; expected a positive number of GB for the cache of weights"


def test_a_cache_that_cannot_be_written_is_told(ckpts, cache):
    cache.write_text("a file in the way")
    (problem,) = problems_of(lambda: local_checkpoint(ckpts))
    assert "a folder that cannot be written (Not a directory)" in problem


def test_what_was_fetched_serves_while_the_store_does_not_answer(ckpts):
    folder = local_checkpoint(ckpts, [MODEL])

    def stat(key):
        raise StorageUnavailable(key)

    silent = overridden(ckpts, stat=stat)
    told = []
    assert local_checkpoint(silent, [MODEL], tell=told.append) == folder
    assert "does not answer" in told[0]
    with pytest.raises(StorageUnavailable):
        local_checkpoint(silent, ["960x960_5s"])


def test_no_file_is_written_outside_the_cache_whatever_the_store_says(ckpts, cache):
    (ckpts / ARCHITECTURE).write_bytes(b'{"models": {"720x720_5s": {"checkpoint": "../../../../evil"}}}')
    with pytest.raises(CheckpointMismatch, match="a path in the checkpoint folder"):
        local_checkpoint(ckpts, [MODEL])


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_worker_fetches_its_model_and_another_when_it_is_ordered(ckpts):
    config = WorkerConfig(ckpt_dir=str(ckpts), model_name=MODEL, dtype="float32", device="cpu", num_threads=1)
    worker = Worker(config)
    folder = cache_folder(ckpts)
    assert worker.describe().component_gb[Component.TRANSFORMER] < 0.1
    assert not (folder / "Ovi/model_960x960.safetensors").exists()
    components = frozenset({Component.TRANSFORMER})
    report = worker.run(TaskRequest(number=1, work=Preload(), model_name="960x960_5s", components=components))
    assert report.failure is None
    assert (folder / "Ovi/model_960x960.safetensors").exists()


def test_a_worker_encodes_a_first_frame_of_a_store(tiny_dir, s3_bucket, first_frame_path):
    image = to_location(f"{s3_bucket}/frames/first.png")
    image.upload(first_frame_path)
    worker = Worker(
        WorkerConfig(ckpt_dir=str(tiny_dir), model_name=MODEL, dtype="float32", device="cpu", num_threads=1)
    )
    latents = []
    for path in (image, first_frame_path, image.with_name("gone.png")):
        work = EncodeFirstFrame(image_path=str(path), height=32, width=96)
        request = TaskRequest(number=1, work=work, model_name=MODEL, components=frozenset({Component.VIDEO_VAE}))
        report, latent = worker.run(request)
        latents.append(latent)
    assert np.array_equal(latents[0].arrays["latent"], latents[1].arrays["latent"])
    assert (report.failure.kind, latent) == (FailureKind.BAD_INPUT, None)
    assert "gone.png" in report.failure.message


# -- before a job ----------------------------------------------------------------------------------------------------


def test_a_clip_has_the_same_id_whether_its_weights_lie_in_a_store_or_on_a_disk(ckpts, tiny_dir, tmp_path):
    told = []
    there = prepare(job(ckpts, tmp_path), on_message=told.append)
    here = prepare(job(tiny_dir, tmp_path))
    assert there.manifest == here.manifest
    assert there.job.ckpt_dir == ckpts
    assert len(fetches(told)) == 6  # all but what is read for the sizes


def test_missing_weights_are_named_where_they_should_be_and_no_others_are_fetched(ckpts, tmp_path):
    (ckpts / TRANSFORMER).unlink()
    told = []
    problems = problems_of(lambda: prepare(job(ckpts, tmp_path), on_message=told.append))
    assert problems == [
        f"{ckpts}/{TRANSFORMER}: no such file; expected a file of model {MODEL}, at the path that `ovi-ray weights"
        " download` gives it on a disk"
    ]
    assert fetches(told) == []


def test_broken_weights_are_named_by_their_uri(ckpts, tmp_path):
    (ckpts / TRANSFORMER).write_bytes(b"broken")
    (problem,) = problems_of(lambda: prepare(job(ckpts, tmp_path)))
    assert problem.startswith(f"{ckpts}/{TRANSFORMER}: truncated or not a checkpoint (6 bytes")


def test_a_bad_row_is_told_before_anything_large_is_fetched(ckpts, tmp_path):
    (tmp_path / "p.csv").write_text("text_prompt,seed\na fox,x\n")
    told = []
    options = {"text_prompt": None, "prompts": tmp_path / "p.csv"}
    (problem,) = problems_of(lambda: prepare(job(ckpts, tmp_path, **options), on_message=told.append))
    assert "row 1" in problem
    assert fetches(told) == []


def test_a_broken_architecture_is_named_by_its_uri(ckpts, tmp_path):
    (ckpts / ARCHITECTURE).write_bytes(b"{")
    problems = problems_of(lambda: prepare(job(ckpts, tmp_path)))
    assert problems[0].startswith(f"{ckpts}/{ARCHITECTURE}: ")
