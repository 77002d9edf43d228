"""The cache of checkpoint folders in stores: each file is fetched to this machine once, by one process at a time.

    $XDG_CACHE_HOME/ovi-ray/checkpoints/<hash of the URI>/    in the published layout
        Ovi/model.safetensors            complete or absent
        Ovi/.model.safetensors.source    its size and time of change in the store when it was fetched

A file whose size or time of change differs in the store is fetched again. While the store does not answer, a model that was
fetched before is used. Where a file has no room, others that no process uses go (`eviction`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ovi.config import Architecture
from ovi.errors import CheckpointMismatch
from ovi.files import atomic_writer, user_cache_folder
from ovi.weights.formats import WeightFormat, in_format
from ovi.weights.layout import ARCHITECTURE, model_files
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.storage.file_locks import lock_exclusively
from ovi_ray.storage.paths import Location, PathOrUri, remove_unfinished, to_location
from ovi_ray.weights.eviction import FREE_BYTES, LOCK, FilesInUse, NoRoom, Room, cache_bound, record_of

_HASH_DIGITS = 16

Tell = Callable[[str], None]
_IN_USE = FilesInUse()  # by this process: the locks are its own, and end with it


def local_checkpoint(
    ckpt_dir: PathOrUri,
    model_names: Iterable[str] = (),
    weights: WeightFormat = WeightFormat.DTYPE,
    *,
    tell: Tell = lambda text: None,
    free_bytes: int = FREE_BYTES,
) -> Path:
    """A folder on this machine with the files of a checkpoint folder that some models need, and its `architecture.json`.

    A file that is missing in the store is missing there too. `free_bytes` are left free on the disk of the cache. Its
    files stay until this process asks for those of another model, or ends.

    Raises StorageUnavailable where the store fails, InputError where the files do not fit on the disk, InvalidRequest for a
    model that does not exist or not in that format, and CheckpointMismatch for an unusable `architecture.json`.
    """
    source = to_location(ckpt_dir)
    if (local := source.local_path) is not None:
        return local
    folder = cache_folder(source)
    room = Room(folder=folder, max_bytes=cache_bound(), free_bytes=free_bytes)
    cache = _Cache(source=source, folder=folder, room=room, tell=tell)
    with _exclusive(folder):
        cache.update([ARCHITECTURE])
        files = dict.fromkeys(file for name in model_names for file in _files(source, folder, name, weights))
        if files:
            cache.update(list(files))
            _IN_USE.replace([folder / file for file in (ARCHITECTURE, *files)])
    return folder


def missing_files(ckpt_dir: Location, model_name: str, weights: WeightFormat = WeightFormat.DTYPE) -> list[str]:
    """The files of a model that are missing in a store; none while it does not answer. Raises what `local_checkpoint` does."""
    files = _files(ckpt_dir, local_checkpoint(ckpt_dir), model_name, weights)
    try:
        return [file for file in files if not (ckpt_dir / file).is_file()]
    except StorageUnavailable:
        return []


def cache_folder(ckpt_dir: Location) -> Path:
    """The cache of a checkpoint folder in a store on this machine."""
    name = hashlib.sha256(str(ckpt_dir).encode()).hexdigest()[:_HASH_DIGITS]
    return user_cache_folder() / "checkpoints" / name


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a cache folder. The lock ends with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("wb")
    except OSError as error:
        found = f"a folder that cannot be written ({error.strerror})"
        expected = "a cache folder for weights from a store: set XDG_CACHE_HOME to one that can be written"
        raise InputError([Problem(file=str(folder), value=found, expected=expected)]) from error
    with lock:
        lock_exclusively(lock, waits=True)
        yield


@dataclass(kw_only=True, slots=True, frozen=True)
class _Cache:
    """The cached copy of one checkpoint folder. The caller holds its lock."""

    source: Location
    folder: Path
    room: Room
    tell: Tell

    def update(self, files: list[str]) -> None:
        """Fetch those files that are not cached or that changed, and remove those that are gone from the store."""
        try:
            stale = {file: facts for file in files if (facts := _facts(self.source / file)) != self._recorded(file)}
        except StorageUnavailable:
            if not all(file == ARCHITECTURE or self._recorded(file) for file in files):
                raise
            self.tell(f"{self.source} does not answer: the weights that were fetched before are used")
            return
        for file in stale:
            (self.folder / file).unlink(missing_ok=True)
            record_of(self.folder / file).unlink(missing_ok=True)
        self._fetch_all({file: facts for file, facts in stale.items() if facts}, keep=files)

    def _fetch_all(self, files: dict[str, dict[str, float]], *, keep: list[str]) -> None:
        for parent in {(self.folder / file).parent for file in files}:
            parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished(to_location(parent))
        try:
            kept = {self.folder / file for file in (ARCHITECTURE, *keep)}
            self.room.make(sum(facts["size"] for facts in files.values()), keep=kept, in_use=_IN_USE)
        except NoRoom as error:
            raise InputError([Problem(file=str(self.source), value=error.found, expected=error.expected)]) from error
        for file, facts in files.items():
            self.tell(f"fetching {self.source / file} ({facts['size'] / 1e6:,.0f} MB)")
            _fetch(self.source / file, self.folder / file, facts)

    def _recorded(self, file: str) -> dict[str, float]:
        """The facts of the file in the store when it was fetched; empty where it is not cached completely."""
        local = self.folder / file
        try:
            facts = json.loads(record_of(local).read_text(encoding="utf-8"))
            return facts if local.stat().st_size == facts["size"] else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _facts(source: Location) -> dict[str, float]:
    """Size and time of change of a file in a store, which tell its versions apart; empty for a missing file."""
    try:
        status = source.stat()
    except FileNotFoundError:
        return {}
    return {"size": status.st_size, "mtime": status.st_mtime}


def _fetch(source: Location, local: Path, facts: dict[str, float]) -> None:
    # The record comes first: a file without one would stay when it is removed from the store.
    with atomic_writer(record_of(local)) as record:
        record.write_text(json.dumps(facts), encoding="utf-8")
    with suppress(FileNotFoundError), atomic_writer(local) as target:  # removed from the store just now: it is missing
        source.download(target)
        if (size := target.stat().st_size) != facts["size"]:
            raise StorageUnavailable(f"{source}: {size} of {facts['size']} bytes arrived")
        if _facts(source) != facts:
            raise StorageUnavailable(f"{source}: it changed while it was fetched")


def _files(ckpt_dir: Location, folder: Path, model_name: str, weights: WeightFormat) -> list[str]:
    """The files that a model needs. Raises CheckpointMismatch where `architecture.json` names one outside the folder."""
    files = model_files(in_format(Architecture.read(folder).spec(model_name), weights))
    for file in files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            expected = "a path in the checkpoint folder"
            raise CheckpointMismatch(file, expected=expected, path=str(ckpt_dir / ARCHITECTURE))
    return files
