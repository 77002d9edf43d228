"""Download of the published weights: only the files that a model needs, into a checkpoint folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ovi.config import model_spec
from ovi.errors import CheckpointError
from ovi.weights.formats import FP8_FILE, FP8_REPOSITORY, WeightFormat, in_format
from ovi.weights.layout import model_files

# Subfolder of the checkpoint folder -> hub repository that it mirrors.
_REPOSITORIES = {
    "Ovi": "chetwinlow1/Ovi",
    "Wan2.2-TI2V-5B": "Wan-AI/Wan2.2-TI2V-5B",
    "MMAudio": "hkchengrex/MMAudio",
}


@dataclass(kw_only=True, slots=True, frozen=True)
class HubFile:
    """A published file and its place in the checkpoint folder."""

    repo_id: str
    filename: str
    """Path within the repository."""
    folder: str
    """Subfolder of the checkpoint folder that mirrors the repository."""

    @property
    def path(self) -> str:
        """Path of the file relative to the checkpoint folder."""
        return f"{self.folder}/{self.filename}"


def published_files(model_name: str, weights: WeightFormat = WeightFormat.DTYPE) -> list[HubFile]:
    """The files that a model needs in a weight format, with their repositories.

    Raises InvalidRequest for an unknown model or one that is not published in that format.
    """
    files = []
    for path in model_files(in_format(model_spec(model_name), weights)):
        folder, _, filename = path.partition("/")
        repo_id = FP8_REPOSITORY if path == FP8_FILE else _REPOSITORIES[folder]
        files.append(HubFile(repo_id=repo_id, filename=filename, folder=folder))
    return files


def download_model(
    model_name: str,
    ckpt_dir: str | Path,
    *,
    weights: WeightFormat = WeightFormat.DTYPE,
    on_file: Callable[[HubFile], None] | None = None,
    fetch: Callable[..., str] = hf_hub_download,
) -> list[HubFile]:
    """Download the missing files of a model and return them; an interrupted download resumes.

    `on_file` is called before each download; `fetch` is the hub client. Raises CheckpointError, naming the file and its
    repository, when the hub cannot be reached or refuses access.
    """
    missing = [file for file in published_files(model_name, weights) if not (Path(ckpt_dir) / file.path).is_file()]
    for file in missing:
        if on_file is not None:
            on_file(file)
        try:
            fetch(file.repo_id, file.filename, local_dir=str(Path(ckpt_dir) / file.folder))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise CheckpointError(
                f"cannot be fetched from https://huggingface.co/{file.repo_id} ({error})",
                expected="access to the repository; downloaded files are kept, so run the same command again",
                path=Path(ckpt_dir) / file.path,
            ) from error
    return missing
