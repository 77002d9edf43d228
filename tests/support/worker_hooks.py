"""Test hooks in the worker processes of a job: they log what each worker does, pace it, hold it at a stage, and make it fail.

A job has them when its process is started with `hooked_environment`: Ray's `RAY_RUNTIME_ENV_HOOK` then adds a setup hook and
the settings to every worker process, on every node. Settings are environment variables:

    HOOKS_LOG              folder of the logs
    HOOKS_STEP_S           seconds to sleep in each denoising step and before each task
    HOOKS_WAIT_FOR         workers that must be ready before the first one denoises
    HOOKS_MEET             (any value) the first denoise waits until a worker is sent to assist it; each waits for one that is
    HOOKS_FAILING_WRITES   seed of the writes that fail
    HOOKS_UNREADABLE       seed of the videos that the driver cannot read
    HOOKS_POISON           seed of the clip whose denoise kills its worker
    HOOKS_DEVICE_FAILS     seed of the clip whose first denoise makes the GPU fail it, and every later task of that process
    HOOKS_OUT_OF_MEMORY    a kind of task at which one worker always runs out of memory, such as Decode, or "any"
    HOOKS_REMOVE           a file that is deleted when the first worker starts

Files in the log folder, named after the worker's process id: `.born` (when it started), `.ready` (it joins now), `.steps`,
`.failed-writes`, `.out-of-memory` and `.device-failed` (a byte each). While a file `hold.STAGE` is there, a worker that begins
a task of that stage, or ends a step of a denoise, waits and leaves a file `.held`; without that file it goes on until the next
time. While a file `output.away` is there, with the name of an error and the output location, everything that is asked of that
location fails with this error, in workers and in drivers that call `fail_storage`.
"""

import errno
import functools
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.ray_start import be_patient
from tests.support.waiting import PATIENCE_S, wait_until

FAILING = 0.2  # of the writes, where writes fail
UNREADABLE = 0.5  # of the videos, where reads fail
PASSED_ON = ("HOOKS_", "PYTHONPATH", "OMP_")


def hooked_environment(log: Path, **settings: object) -> dict[str, str]:
    """The environment of a job whose workers have the hooks: `step_s=0.1` sets HOOKS_STEP_S."""
    log.mkdir(parents=True, exist_ok=True)
    hooks = {f"HOOKS_{name.upper()}": str(value) for name, value in settings.items()}
    return {
        "RAY_RUNTIME_ENV_HOOK": f"{__name__}.add_hooks",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOOKS_LOG": str(log),
        **hooks,
    }


def add_hooks(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's hook: workers take their environment from their node, so the settings travel in the runtime environment."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return {**(be_patient(runtime_env) or {}), "worker_process_setup_hook": f"{__name__}.install", "env_vars": settings}


def install() -> None:
    """Run in each worker process before anything else."""
    _write_whole(_file("born"), born(os.getpid()))
    if path := os.environ.get("HOOKS_REMOVE"):
        Path(path).unlink(missing_ok=True)
    _log_readiness()
    _log_steps()
    _pace_tasks()
    if os.environ.get("HOOKS_MEET"):
        _meet_helpers()
    if stage := os.environ.get("HOOKS_OUT_OF_MEMORY"):
        _run_out_of_memory_at(stage)
    if seed := os.environ.get("HOOKS_DEVICE_FAILS"):
        _fail_device_at(seed)
    fail_storage()
    if seed := os.environ.get("HOOKS_FAILING_WRITES"):
        fail_writes(seed)


def fail_writes(seed: str) -> None:
    """Make one write in five fail, from now on in this process: every durable file is put in place by a rename."""
    rng, replace = random.Random(seed), Path.replace

    def failing_replace(self: Path, target: Path) -> Path:
        if rng.random() < FAILING:
            _log("failed-writes", b".")
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        return replace(self, target)

    Path.replace = failing_replace  # type: ignore[method-assign]


def fail_storage() -> None:
    """Let the output fail while it is said to be away, from now on in this process."""
    from ovi_ray.storage.hdfs_store import HdfsStore
    from ovi_ray.storage.local_store import LocalStore
    from ovi_ray.storage.object_store import ObjectStore

    for store in (LocalStore, ObjectStore, HdfsStore):
        for name in _OPERATIONS:
            setattr(store, name, _failing_while_away(getattr(store, name), store.uri))
    Path.replace = _failing_while_away(Path.replace, lambda self, path: str(self))  # type: ignore[method-assign]


def fail_reads(seed: str) -> None:
    """Let half of the videos be unreadable, from now on in this process."""
    from ovi_ray.storage.local_store import LocalStore
    from ovi_ray.storage.object_store import ObjectStore

    for store in (LocalStore, ObjectStore):
        store.read = _failing_for(seed, store.read)


_OPERATIONS = ("kind", "stat", "list", "read", "download", "write", "upload", "delete", "rename", "make_folder")


def _failing_while_away(operation: Any, name_of: Any) -> Any:
    @functools.wraps(operation)
    def asked(self, key, *args, **kwargs):
        error, output = _away()
        if error and str(name_of(self, key)).startswith(output):
            number = getattr(errno, error)
            raise OSError(number, os.strerror(number), str(name_of(self, key)))
        return operation(self, key, *args, **kwargs)

    return asked


def _away() -> tuple[str, str]:
    """The error that the output answers with now, and the output; empty while it works."""
    try:
        error, output = (_folder() / "output.away").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ValueError):
        return "", ""
    return error, output


def _failing_for(seed: str, read: Any) -> Any:
    @functools.wraps(read)
    def failing_read(self, key):
        if key.endswith(".mp4") and random.Random(f"{seed} {key}").random() < UNREADABLE:
            raise OSError(errno.EIO, os.strerror(errno.EIO), key)
        return read(self, key)

    return failing_read


# -- processes ---------------------------------------------------------------------------------------------------------


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks, which with its id tells it from every other; empty when it is dead."""
    return "" if _stat(pid)[0] == "Z" else _stat(pid)[19]


def parent(pid: int) -> int:
    """The process that started another; 0 when that is dead."""
    return int(_stat(pid)[1] or 0)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty fields when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20
    return stat.rpartition(")")[2].split()


# -- hooks -------------------------------------------------------------------------------------------------------------


def _log(what: str, content: bytes) -> None:
    with _file(what).open("ab", buffering=0) as log:
        log.write(content)


def _file(what: str) -> Path:
    return _folder() / f"{os.getpid()}.{what}"


def _folder() -> Path:
    return Path(os.environ["HOOKS_LOG"])


def _pause() -> None:
    time.sleep(float(os.environ.get("HOOKS_STEP_S", "0")))


def _log_readiness() -> None:
    from ovi_ray.workers.actor import Worker

    describe = Worker.describe

    @functools.wraps(describe)  # Ray's mark of the concurrency group is kept
    def logged_describe(self):
        info = describe(self)
        _file("ready").touch()
        return info

    Worker.describe = logged_describe


def _log_steps() -> None:
    from ovi.pipeline import OviPipeline

    denoise = OviPipeline.denoise

    @functools.wraps(denoise)
    def logged_denoise(self, *args, on_step=None, **kwargs):
        def logged_step(done, total):
            _log("steps", b".")
            _pause()
            _wait_while_held("Denoise")
            on_step(done, total)

        return denoise(self, *args, on_step=logged_step, **kwargs)

    OviPipeline.denoise = logged_denoise


def _pace_tasks() -> None:
    from ovi_ray.workers.actor import Worker

    run = Worker.run

    @functools.wraps(run)
    def paced_run(self, order, *inputs):
        make_resident = self._make_resident

        def begun(order):  # within the task, so that an error is the task's
            _begin(type(order.work).__name__, order.work)
            make_resident(order)

        self._make_resident = begun
        try:
            return run(self, order, *inputs)
        finally:
            self._make_resident = make_resident

    Worker.run = paced_run


def _meet_helpers() -> None:
    from ovi.sampling.link import Meeting
    from ovi.sampling.partner import RemoteNegativePass
    from ovi_ray.workers.helpers import Helpers

    answer, begin, met = Meeting.answer, Helpers.begin, _folder() / "met"

    def begin_together(self, **step: Any) -> None:
        if not met.exists():
            wait_until(lambda: self._invitation is not None)
            met.touch()
        begin(self, **step)

    Helpers.begin = begin_together
    Meeting.answer = lambda self: wait_until(lambda: answer(self))
    RemoteNegativePass.__init__.__kwdefaults__["patience_s"] = PATIENCE_S  # the machine may be busy


def _run_out_of_memory_at(stage: str) -> None:
    """Make this worker the sick one, unless another one is and lives."""
    import torch

    from ovi_ray.workers.actor import Worker

    sick, work = _folder() / "sick", Worker._work
    try:
        with sick.open("x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        if born(int(sick.read_text(encoding="utf-8") or os.getpid())):
            return
        _write_whole(sick, str(os.getpid()))

    def failing_work(self, request, inputs):
        if stage in ("any", type(request.work).__name__):
            _log("out-of-memory", b".")
            raise torch.OutOfMemoryError("this worker always runs out of memory")
        return work(self, request, inputs)

    Worker._work = failing_work


def _fail_device_at(seed: str) -> None:
    """Errors of a GPU are sticky: one at this clip, in one process, and then one at everything that the process does."""
    import torch

    from ovi_ray.workers.actor import Worker

    work = Worker._work

    @functools.wraps(work)
    def failing_work(self, request, inputs):
        is_first = not list(_folder().glob("*.device-failed"))
        if is_first and str(getattr(getattr(request.work, "params", None), "seed", None)) == seed:
            _log("device-failed", b".")
        elif not _file("device-failed").exists():
            return work(self, request, inputs)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    Worker._work = failing_work


def _begin(stage: str, work: Any) -> None:
    """An event before a task: a pause, a wait, or the worker's death."""
    _pause()
    if stage != "Denoise":
        _wait_while_held(stage)
        return
    if str(work.params.seed) == os.environ.get("HOOKS_POISON"):
        os.kill(os.getpid(), signal.SIGKILL)
    while len(list(_folder().glob("*.ready"))) < int(os.environ.get("HOOKS_WAIT_FOR", "0")):
        time.sleep(0.02)


def _wait_while_held(stage: str) -> None:
    hold, held = _folder() / f"hold.{stage}", _file("held")
    if hold.exists():
        _write_whole(held, stage)
        while hold.exists() and held.exists():
            time.sleep(0.02)
        held.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """A reader sees all of the text or no file."""
    aside = path.with_suffix(".aside")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)  # noqa: PTH105 (not Path.replace, which may be made to fail)
