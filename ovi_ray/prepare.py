"""Everything that can be known to be wrong before a model loads, told at once."""

from dataclasses import dataclass

from ovi.config import Architecture
from ovi.errors import CheckpointError
from ovi.weights import loading as checkpoints
from ovi.weights.layout import ARCHITECTURE
from ovi_ray.devices.checks import device_problems
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.weights.cache import Tell, local_checkpoint
from ovi_ray.weights.checks import checkpoint_problem, checkpoint_problems, missing_file_problems, store_problem
from ovi_ray.weights.digests import cached_file_digest


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
        problems.append(checkpoint_problem(error, job.ckpt_dir / ARCHITECTURE))
    except StorageUnavailable as error:
        problems.append(store_problem(error, job.ckpt_dir))
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
    if job.ckpt_dir.is_local:
        return checkpoint_problems(job.ckpt_dir, job.model_name, job.weights)
    return missing_file_problems(job.ckpt_dir, job.model_name, job.weights)


def _weights(job: JobSpec, model_name: str, found: list[Problem], tell: Tell) -> str:
    """The fingerprint of a model's weights; of a model that cannot be used, its problems."""
    problems = found or checkpoint_problems(job.ckpt_dir, model_name, job.weights, tell=tell)
    if problems:
        raise InputError(problems)
    folder = local_checkpoint(job.ckpt_dir, [model_name], job.weights)
    return checkpoints.fingerprint(folder, model_name, cached_file_digest, job.weights)
