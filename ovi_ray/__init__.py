"""Distributed batch rendering for Ovi 1.1: prompt lists in, videos with sound out.

    from ovi_ray import JobSpec, prepare, render

    job = JobSpec.from_options(prompts="prompts.csv", ckpt_dir="ckpts", output_dir="out")
    result = render(prepare(job))

Importing the package is light: each name is loaded when it is first used, and torch and ray with `prepare` and `render`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovi import __version__

if TYPE_CHECKING:
    from ovi_ray.errors import (
        ClusterError,
        InputError,
        JobStopped,
        LatentsUnusable,
        OutputError,
        OutputInUse,
        OutputOfOtherJob,
        OviRayError,
        Problem,
        ResultsTooNew,
        StorageUnavailable,
        WorkersLost,
    )
    from ovi_ray.inputs.job_spec import JobSpec
    from ovi_ray.preparation import PreparedJob, prepare
    from ovi_ray.rendering import JobResult, RenderOptions, render
    from ovi_ray.retry import Retry, prepare_retry

__all__ = [
    "ClusterError",
    "InputError",
    "JobResult",
    "JobSpec",
    "JobStopped",
    "LatentsUnusable",
    "OutputError",
    "OutputInUse",
    "OutputOfOtherJob",
    "OviRayError",
    "PreparedJob",
    "Problem",
    "RenderOptions",
    "ResultsTooNew",
    "Retry",
    "StorageUnavailable",
    "WorkersLost",
    "__version__",
    "prepare",
    "prepare_retry",
    "render",
]

_MODULES = {
    "JobSpec": "ovi_ray.inputs.job_spec",
    "PreparedJob": "ovi_ray.preparation",
    "prepare": "ovi_ray.preparation",
    "JobResult": "ovi_ray.rendering",
    "RenderOptions": "ovi_ray.rendering",
    "render": "ovi_ray.rendering",
    "Retry": "ovi_ray.retry",
    "prepare_retry": "ovi_ray.retry",
}
"""Module of each public name that is no error."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ovi_ray' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "ovi_ray.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
