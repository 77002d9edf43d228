"""Everything that can be known to be wrong before a model loads, told at once."""

from dataclasses import dataclass
from pathlib import Path

from ovi import checkpoints
from ovi.config import Architecture
from ovi.errors import CheckpointError, InvalidRequest
from ovi.weight_formats import WeightFormat
from ovi_ray.device_checks import device_problems
from ovi_ray.digests import cached_file_digest
from ovi_ray.errors import InputError, Problem
from ovi_ray.job import JobSpec
from ovi_ray.manifest import Manifest, build_manifest
from ovi_ray.profiles import read_profile


@dataclass(kw_only=True, slots=True, frozen=True)
class PreparedJob:
    """A job whose every input was checked."""

    job: JobSpec
    manifest: Manifest


def prepare(job: JobSpec) -> PreparedJob:
    """Check the checkpoint, the cluster profile and every row of the prompt list. Raises InputError with every problem."""
    problems = _profile_problems(job)
    arch = Architecture()
    try:
        arch = Architecture.read(job.ckpt_dir)
        problems += checkpoint_problems(job.ckpt_dir, job.model_name, job.weights)
        problems += device_problems(job)
    except CheckpointError as error:
        problems.append(_problem(error, Path(job.ckpt_dir)))
    try:
        manifest = build_manifest(job, arch, weights=lambda name: _weights(job, name, problems), numerics=job.numerics)
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


def checkpoint_problems(ckpt_dir: Path, model_name: str, weights: WeightFormat = WeightFormat.DTYPE) -> list[Problem]:
    """What is wrong with the files of a model."""
    try:
        statuses = checkpoints.check_model(ckpt_dir, model_name, weights)
    except InvalidRequest as error:
        return [Problem(file=str(ckpt_dir), field="weights", value=str(weights), expected=str(error))]
    return [_problem(status.error, ckpt_dir / status.path) for status in statuses if status.error is not None]


def _weights(job: JobSpec, model_name: str, found: list[Problem]) -> str:
    """The fingerprint of a model's weights; of a model that cannot be used, its problems."""
    problems = found or checkpoint_problems(job.ckpt_dir, model_name, job.weights)
    if problems:
        raise InputError(problems)
    return checkpoints.fingerprint(job.ckpt_dir, model_name, cached_file_digest, job.weights)


def _problem(error: CheckpointError, path: Path) -> Problem:
    return Problem(file=error.path or str(path), value=error.found, expected=error.expected)
