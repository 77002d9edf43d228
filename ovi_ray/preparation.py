"""Check everything about a job that can be checked before a model loads. Nothing is written to its output folder."""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from ovi.config import Architecture
from ovi.errors import CheckpointError
from ovi.weights.layout import ARCHITECTURE
from ovi.weights.loading import fingerprint
from ovi.weights.tokenizer import load_tokenizer
from ovi_ray.devices.checks import device_problems
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.inputs.prompt_lengths import TextLimit
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.weights.checks import checkpoint_problem, checkpoint_problems, missing_file_problems, store_problem
from ovi_ray.weights.digests import cached_file_digest


@dataclass(kw_only=True, slots=True, frozen=True)
class PreparedJob:
    """A job whose every input was checked."""

    job: JobSpec
    manifest: Manifest


def prepare(
    job: JobSpec, *, prompts: PromptList | None = None, on_message: Callable[[str], None] = lambda text: None
) -> PreparedJob:
    """Check the checkpoint, the cluster profile and every row of the prompt list. Raises InputError with every problem.

    `prompts` replaces the job's own list. Weights in a store are downloaded to this machine once everything else is valid;
    `on_message` receives a line for each file.
    """
    problems = _profile_problems(job)
    arch, found = _check_checkpoint(job)
    problems += found
    try:
        manifest = build_manifest(
            job,
            arch,
            weights=lambda name: _fingerprint(job, name, problems, on_message),
            numerics=job.numerics,
            limit=TextLimit(tokens=arch.text_encoder.text_len, tokenizer=lambda: _tokenizer(job)),
            prompts=prompts,
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


def _check_checkpoint(job: JobSpec) -> tuple[Architecture, list[Problem]]:
    """The checkpoint's architecture, or the published one where it cannot be read, and the problems of the job's model."""
    arch = Architecture()
    try:
        arch = Architecture.read(local_checkpoint(job.ckpt_dir))
        return arch, [*_local_problems(job), *device_problems(job)]
    except CheckpointError as error:
        return arch, [checkpoint_problem(error, job.ckpt_dir / ARCHITECTURE)]
    except StorageUnavailable as error:
        return arch, [store_problem(error, job.ckpt_dir)]
    except InputError as error:
        return arch, list(error.problems)


def _local_problems(job: JobSpec) -> list[Problem]:
    """Problems with the files of the job's model. Of files in a store, only their presence is checked."""
    if job.ckpt_dir.is_local:
        return checkpoint_problems(job.ckpt_dir, job.model_name, job.weights)
    return missing_file_problems(job.ckpt_dir, job.model_name, job.weights)


def _tokenizer(job: JobSpec) -> Tokenizer:
    """The tokenizer of a checkpoint folder that was checked, and fetched where it is in a store."""
    folder = local_checkpoint(job.ckpt_dir, [job.model_name], job.weights)
    return load_tokenizer(folder, job.model_name, truncates=False)


def _fingerprint(job: JobSpec, model_name: str, found: list[Problem], on_message: Callable[[str], None]) -> str:
    """The fingerprint of a model's weights. Raises InputError with the problems found so far, or with the model's own."""
    problems = found or checkpoint_problems(job.ckpt_dir, model_name, job.weights, tell=on_message)
    if problems:
        raise InputError(problems)
    folder = local_checkpoint(job.ckpt_dir, [model_name], job.weights)
    return fingerprint(folder, model_name, cached_file_digest, job.weights)
