"""Everything that can be known to be wrong before a model loads, told at once."""

from dataclasses import dataclass
from pathlib import Path

from ovi import checkpoints
from ovi.config import Architecture
from ovi.errors import CheckpointError, InvalidRequest
from ovi.layout import ARCHITECTURE
from ovi.weight_formats import WeightFormat
from ovi_ray.checkpoint_cache import Tell, local_checkpoint, missing_files
from ovi_ray.device_checks import device_problems
from ovi_ray.digests import cached_file_digest
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.job import JobSpec
from ovi_ray.locations import Location
from ovi_ray.manifest import Manifest, build_manifest
from ovi_ray.profiles import read_profile
from ovi_ray.remote import RemotePath
from ovi_ray.store_reasons import plain_reason


@dataclass(kw_only=True, slots=True, frozen=True)
class PreparedJob:
    """A job whose every input was checked."""

    job: JobSpec
    manifest: Manifest


def prepare(job: JobSpec, *, tell: Tell = lambda text: None) -> PreparedJob:
    """Check the checkpoint, the cluster profile and every row of the prompt list. Raises InputError with every problem.

    Weights in a store are fetched to this machine once all else is right; `tell` gets what is fetched.
    """
    problems = _profile_problems(job)
    arch = Architecture()
    try:
        arch = Architecture.read(local_checkpoint(job.ckpt_dir))
        problems += _unfetched_problems(job)
        problems += device_problems(job)
    except CheckpointError as error:
        problems.append(_problem(error, job.ckpt_dir / ARCHITECTURE))
    except StorageUnavailable as error:
        problems.append(_store_problem(error, job.ckpt_dir))
    except InputError as error:
        problems += error.problems
    try:
        manifest = build_manifest(
            job, arch, weights=lambda name: _weights(job, name, problems, tell), numerics=job.numerics
        )
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise InputError(problems)
    return PreparedJob(job=job, manifest=manifest)


def _profile_problems(job: JobSpec) -> list[Problem]:
    try:
        if job.cluster is not None:
            read_profile(job.cluster)
    except InputError as error:
        return list(error.problems)
    return []


def _unfetched_problems(job: JobSpec) -> list[Problem]:
    """What is wrong with the job's model; in a store, what can be told of it without fetching it."""
    if isinstance(job.ckpt_dir, Path):
        return checkpoint_problems(job.ckpt_dir, job.model_name, job.weights)
    return _missing(job.ckpt_dir, job.model_name, job.weights)


def checkpoint_problems(
    ckpt_dir: Location,
    model_name: str,
    weights: WeightFormat = WeightFormat.DTYPE,
    *,
    tell: Tell = lambda text: None,
) -> list[Problem]:
    """What is wrong with the files of a model. Those in a store are fetched, unless one is missing."""
    try:
        if isinstance(ckpt_dir, RemotePath) and (missing := _missing(ckpt_dir, model_name, weights)):
            return missing
        folder = local_checkpoint(ckpt_dir, [model_name], weights, tell=tell)
        statuses = checkpoints.check_model(folder, model_name, weights)
    except InvalidRequest as error:
        return [Problem(file=str(ckpt_dir), field="weights", value=str(weights), expected=str(error))]
    except OSError as error:  # the store's, or the disk is full after all
        return [_store_problem(error, ckpt_dir)]
    except InputError as error:
        return list(error.problems)
    return [_problem(status.error, ckpt_dir / status.path) for status in statuses if status.error is not None]


def _missing(ckpt_dir: RemotePath, model_name: str, weights: WeightFormat) -> list[Problem]:
    expected = f"a file of model {model_name}, where `ovi-ray weights download` puts it in a folder on a disk"
    return [
        Problem(file=str(ckpt_dir / file), value="no such file", expected=expected)
        for file in missing_files(ckpt_dir, model_name, weights)
    ]


def _weights(job: JobSpec, model_name: str, found: list[Problem], tell: Tell) -> str:
    """The fingerprint of a model's weights; of a model that cannot be used, its problems."""
    problems = found or checkpoint_problems(job.ckpt_dir, model_name, job.weights, tell=tell)
    if problems:
        raise InputError(problems)
    folder = local_checkpoint(job.ckpt_dir, [model_name], job.weights)
    return checkpoints.fingerprint(folder, model_name, cached_file_digest, job.weights)


def _problem(error: CheckpointError, path: Location) -> Problem:
    return Problem(file=str(path), value=error.found, expected=error.expected)


def _store_problem(error: OSError, ckpt_dir: Location) -> Problem:
    return Problem(file=str(ckpt_dir), value=plain_reason(error), expected="a checkpoint folder that can be read")
