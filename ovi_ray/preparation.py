"""Check everything about a job that can be checked before a model loads. Nothing is written to its output folder."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
from tokenizers import Tokenizer

from ovi.attention import AttentionBackend
from ovi.config import Architecture
from ovi.errors import CheckpointError
from ovi.weights.digest import fingerprint
from ovi.weights.layout import ARCHITECTURE
from ovi.weights.tokenizer import load_tokenizer
from ovi_ray.devices.kernel_gpus import may_have_gpu
from ovi_ray.errors import InputError, Problem, StorageUnavailable
from ovi_ray.inputs.bad_rows import BadRow, of_good_rows
from ovi_ray.inputs.clip_forms import ClipForm, clip_forms
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import JobSpec, Weights
from ovi_ray.inputs.manifest import Manifest, build_manifest, read_prompts
from ovi_ray.inputs.prompt_lengths import TextLimit
from ovi_ray.inputs.prompt_lists import PromptList
from ovi_ray.output.folder_state import manifest_in
from ovi_ray.output.job_files import read_job_file
from ovi_ray.printing import counted
from ovi_ray.weights.cache import local_checkpoint
from ovi_ray.weights.checks import checkpoint_problem, checkpoint_problems, missing_file_problems, store_problem
from ovi_ray.weights.digests import cached_file_digest, damaged_files, unread_bytes

_TOLD_BYTES = 500_000_000  # of weights that are hashed: a second or more


@dataclass(kw_only=True, slots=True, frozen=True)
class PreparedJob:
    """A job whose every input was checked."""

    job: JobSpec
    manifest: Manifest
    damaged: Mapping[str, str] = field(default_factory=dict)
    """The models with weights that are not finite numbers, and which they are. Their clips cannot be rendered."""
    keeps_seeds: bool = False
    """Its clips have seeds of an earlier run, and are to keep them."""
    bad_rows: tuple[BadRow, ...] = ()
    """Rows of the list that cannot be rendered, and are left out."""


def prepare(
    job: JobSpec,
    *,
    prompts: PromptList | None = None,
    skip_bad_rows: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
) -> PreparedJob:
    """Check the checkpoint, the cluster profile and every row of the prompt list. Raises InputError with every problem.

    `prompts` replaces the job's own list. With `skip_bad_rows`, rows with problems are left out, as long as any row is left.
    Weights in a store are downloaded to this machine once everything else is valid; `on_message` receives a line for each file.
    The job's environment becomes that of this process: stores read it.
    """
    os.environ.update(job.environment)
    problems, damaged = _profile_problems(job), dict[str, str]()
    kept = None if prompts is not None else _kept_seeds(job)
    prompts, unread = (prompts, []) if prompts is not None else _read(job)
    forms = () if prompts is None else clip_forms(prompts, job)
    if job.weights is Weights.AUTO and not problems:
        job, problems = _with_weights(job, forms, on_message)
    arch, found = _check_checkpoint(job, forms)
    problems += [*found, *unread]

    def build(prompts: PromptList) -> Manifest:
        return build_manifest(
            job,
            arch,
            weights=lambda name: _fingerprint(job, name, problems, damaged, on_message),
            numerics=job.numerics,
            limit=TextLimit(tokens=arch.text_encoder.text_len, tokenizer=lambda: _tokenizer(job)),
            prompts=prompts,
            kept=kept,
        )

    bad_rows: list[BadRow] = []
    try:
        if prompts is not None:
            on_message(f"checking {counted(len(prompts), 'row')}")
            manifest, bad_rows = of_good_rows(build, prompts) if skip_bad_rows else (build(prompts), [])
    except InputError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise InputError(problems)
    return PreparedJob(
        job=job,
        manifest=manifest,
        damaged=damaged,
        keeps_seeds=kept is not None,
        bad_rows=tuple(bad_rows),
    )


def _read(job: JobSpec) -> tuple[PromptList | None, list[Problem]]:
    """The job's list, or the problems of one that cannot be read as a list at all."""
    try:
        return read_prompts(job), []
    except InputError as error:
        return None, list(error.problems)


def _kept_seeds(job: JobSpec) -> pa.Table | None:
    """The manifest of the output folder, where its clips are to keep their seeds: as the job says, else as its last run did.

    A run with another seed of the job asks for other clips.
    """
    try:
        if job.keep_seeds is None:
            saved = read_job_file(job.output_dir)
            keeps = saved.get("keeps_seeds") is True and saved.get("job", {}).get("seed") == job.seed
        else:
            keeps = job.keep_seeds
        return manifest_in(job.output_dir) if keeps else None
    except OSError:  # `render` tells why the folder cannot be used
        return None


def _with_weights(
    job: JobSpec, forms: Sequence[ClipForm], on_message: Callable[[str], None]
) -> tuple[JobSpec, list[Problem]]:
    """The job with the form of the weights decided. A checkpoint that cannot be read is reported by its own check."""
    from ovi_ray.devices.checks import chosen_weights  # with torch, which takes seconds to import

    with suppress(CheckpointError, StorageUnavailable):
        try:
            chosen = chosen_weights(job, forms=forms)
        except InputError as error:
            return job, list(error.problems)
        reason = "which the devices have room for" if chosen is Weights.DTYPE else "with which more devices can denoise"
        on_message(f"weights: {chosen}, {reason}")
        return job.model_copy(update={"weights": chosen}), []
    return job, []


def _profile_problems(job: JobSpec) -> list[Problem]:
    try:
        if job.cluster is not None:
            read_profile(job.cluster).priced(job.prices)
    except InputError as error:
        return list(error.problems)
    return []


def _check_checkpoint(job: JobSpec, forms: Sequence[ClipForm]) -> tuple[Architecture, list[Problem]]:
    """The checkpoint's architecture, or the published one where it cannot be read, and the problems of the job's model."""
    arch = Architecture()
    try:
        arch = Architecture.read(local_checkpoint(job.ckpt_dir))
        return arch, [*_local_problems(job), *_device_problems(job, forms)]
    except CheckpointError as error:
        return arch, [checkpoint_problem(error, job.ckpt_dir / ARCHITECTURE)]
    except StorageUnavailable as error:
        return arch, [store_problem(error, job.ckpt_dir)]
    except InputError as error:
        return arch, list(error.problems)


def _device_problems(job: JobSpec, forms: Sequence[ClipForm]) -> list[Problem]:
    """Problems of what a job asks of its devices, and of its weights on GPUs that are too small for them."""
    if job.memory_gb is None and job.attention is AttentionBackend.AUTO and not may_have_gpu():
        return []
    from ovi_ray.devices.checks import device_problems  # with torch, which takes seconds to import

    return device_problems(job, forms=forms)


def _local_problems(job: JobSpec) -> list[Problem]:
    """Problems with the files of the job's model. Of files in a store, only their presence is checked."""
    if job.ckpt_dir.is_local:
        return checkpoint_problems(job.ckpt_dir, job.model_name, job.weight_format)
    return missing_file_problems(job.ckpt_dir, job.model_name, job.weight_format)


def _tokenizer(job: JobSpec) -> Tokenizer:
    """The tokenizer of a checkpoint folder that was checked, and fetched where it is in a store."""
    folder = local_checkpoint(job.ckpt_dir, [job.model_name], job.weight_format)
    return load_tokenizer(folder, job.model_name, truncates=False)


def _fingerprint(
    job: JobSpec,
    model_name: str,
    found: list[Problem],
    damaged: dict[str, str],
    on_message: Callable[[str], None],
) -> str:
    """The fingerprint of a model's weights; damage found on the way is added to `damaged`.

    Raises InputError with the problems found so far, or with the model's own.
    """
    is_checked = job.ckpt_dir.is_local and model_name == job.model_name  # by `_local_problems`
    problems = found or (
        [] if is_checked else checkpoint_problems(job.ckpt_dir, model_name, job.weight_format, tell=on_message)
    )
    if problems:
        raise InputError(problems)
    folder = local_checkpoint(job.ckpt_dir, [model_name], job.weight_format)
    if (unread := unread_bytes(folder, model_name, job.weight_format)) >= _TOLD_BYTES:
        on_message(f"hashing {unread / 1e9:,.0f} GB of weights in {folder}, once")
    if damage := damaged_files(folder, model_name, job.weight_format):
        damaged[model_name] = damage
    return fingerprint(folder, model_name, cached_file_digest, job.weight_format)
