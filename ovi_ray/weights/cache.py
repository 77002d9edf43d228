"""Checkpoint folders that lie in a store, fetched to this machine: each file once, by one process at a time. Pure.

    $XDG_CACHE_HOME/ovi-ray/checkpoints/<hash of the URI>/    in the published layout
        Ovi/model.safetensors            complete or absent
        Ovi/.model.safetensors.source    what the store said of it when it was fetched

A file whose size or time of change is another in the store is fetched again. Where the store does not answer, a model that
was fetched before is used as it is.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from ovi.config import Architecture
from ovi.errors import CheckpointMismatch
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import ARCHITECTURE, model_files
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.storage.object_store import RemotePath
from ovi_ray.storage.paths import Location, remove_unfinished, write_bytes, written

HASH_DIGITS = 16
KEPT_FREE = 1 << 30  # bytes that a download leaves on the disk
GB = 1e9

Tell = Callable[[str], None]


def local_checkpoint(
    ckpt_dir: Location,
    model_names: Iterable[str] = (),
    weights: WeightFormat = WeightFormat.DTYPE,
    *,
    tell: Tell = lambda text: None,
) -> Path:
    """A folder on this machine that has what these models need of a checkpoint folder; without a model, its architecture.

    A file that is missing in the store is missing there too. Raises StorageUnavailable where the store does not give them,
    InputError where they do not fit on the disk, InvalidRequest for a model that does not exist or not in that format, and
    CheckpointMismatch for an unusable `architecture.json`.
    """
    if isinstance(ckpt_dir, Path):
        return ckpt_dir
    folder = cache_folder(ckpt_dir)
    with _alone(folder):
        _bring_up_to_date(ckpt_dir, folder, [ARCHITECTURE], tell)
        files = dict.fromkeys(file for name in model_names for file in _files(ckpt_dir, folder, name, weights))
        _bring_up_to_date(ckpt_dir, folder, list(files), tell)
    return folder


def missing_files(ckpt_dir: RemotePath, model_name: str, weights: WeightFormat = WeightFormat.DTYPE) -> list[str]:
    """The files of a model that are not in a store, as far as it answers. Raises what `local_checkpoint` does."""
    files = _files(ckpt_dir, local_checkpoint(ckpt_dir), model_name, weights)
    try:
        return [file for file in files if not (ckpt_dir / file).is_file()]
    except StorageUnavailable:  # not even that is known
        return []


def cache_folder(ckpt_dir: RemotePath) -> Path:
    """Where the files of a checkpoint folder in a store are kept on this machine."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(str(ckpt_dir).encode()).hexdigest()[:HASH_DIGITS]
    return Path(root) / "ovi-ray" / "checkpoints" / name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a cache folder. A lock goes with its process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        found = f"a folder that cannot be written ({error.strerror})"
        expected = "a folder for weights from a store: XDG_CACHE_HOME names another"
        raise InputError([Problem(file=str(folder), value=found, expected=expected)]) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bring_up_to_date(ckpt_dir: RemotePath, folder: Path, files: list[str], tell: Tell) -> None:
    try:
        stale = {file: facts for file in files if (facts := _facts(ckpt_dir / file)) != _recorded(folder / file)}
    except StorageUnavailable:
        if all(file == ARCHITECTURE or _recorded(folder / file) for file in files):
            tell(f"{ckpt_dir} does not answer: the weights that were fetched before are used")
            return
        raise
    for file in stale:
        (folder / file).unlink(missing_ok=True)
        _record_of(folder / file).unlink(missing_ok=True)
    there = {file: facts for file, facts in stale.items() if facts}
    for parent in {(folder / file).parent for file in there}:
        parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(parent)  # of processes that were killed: this one has the lock
    _check_room(ckpt_dir, folder, sum(facts["size"] for facts in there.values()))
    for file, facts in there.items():
        tell(f"fetching {ckpt_dir / file} ({facts['size'] / 1e6:,.0f} MB)")
        _fetch(ckpt_dir / file, folder / file, facts)


def _facts(source: RemotePath) -> dict[str, float]:
    """What tells a file of a store from what it was before; nothing for one that is not there."""
    try:
        status = source.stat()
    except FileNotFoundError:
        return {}
    return {"size": status.st_size, "mtime": status.st_mtime}


def _recorded(local: Path) -> dict[str, float]:
    """The facts of the file that was fetched; nothing where it is not there, or not wholly."""
    try:
        facts = json.loads(_record_of(local).read_text(encoding="utf-8"))
        return facts if local.stat().st_size == facts["size"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _record_of(local: Path) -> Path:
    return local.with_name(f".{local.name}.source")


def _fetch(source: RemotePath, local: Path, facts: dict[str, float]) -> None:
    # The record first: a file without one would stay when it is removed from the store.
    write_bytes(_record_of(local), json.dumps(facts).encode())
    with suppress(FileNotFoundError), written(local) as target:  # removed from the store just now: it is missing
        source.download(target)
        if (size := target.stat().st_size) != facts["size"]:
            raise StorageUnavailable(f"{source}: {size} of {facts['size']} bytes arrived")
        if _facts(source) != facts:
            raise StorageUnavailable(f"{source}: it changed while it was fetched")


def _check_room(ckpt_dir: RemotePath, folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + KEPT_FREE > free:
        found = f"{needed / GB:.1f} GB of weights to fetch, and {free / GB:.1f} GB are free in {folder}"
        expected = "room for them: XDG_CACHE_HOME names a folder on another disk"
        raise InputError([Problem(file=str(ckpt_dir), value=found, expected=expected)])


def _files(ckpt_dir: RemotePath, folder: Path, model_name: str, weights: WeightFormat) -> list[str]:
    """What a model needs. `architecture.json` may name other files: none is ever written outside the cache folder."""
    files = model_files(in_format(Architecture.read(folder).spec(model_name), weights))
    for file in files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            expected = "a path in the checkpoint folder"
            raise CheckpointMismatch(file, expected=expected, path=str(ckpt_dir / ARCHITECTURE))
    return files
