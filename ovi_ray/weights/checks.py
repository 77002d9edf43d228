"""Checks of a model's checkpoint files, on disk or in an object store."""

from ovi.errors import CheckpointError, InvalidRequest
from ovi.weights.formats import WeightFormat
from ovi_ray.errors import InputError, Problem
from ovi_ray.storage.diagnostics import plain_reason
from ovi_ray.storage.paths import Location
from ovi_ray.weights.cache import Tell, local_checkpoint, missing_files
from ovi_ray.weights.checked_models import check_model_once


def checkpoint_problems(
    ckpt_dir: Location,
    model_name: str,
    weights: WeightFormat = WeightFormat.DTYPE,
    *,
    tell: Tell = lambda text: None,
) -> list[Problem]:
    """Problems with the files of a model. Files in a store are fetched first, unless one is missing."""
    try:
        if not ckpt_dir.is_local and (missing := missing_file_problems(ckpt_dir, model_name, weights)):
            return missing
        folder = local_checkpoint(ckpt_dir, [model_name], weights, tell=tell)
        found = check_model_once(folder, model_name, weights)
    except InvalidRequest as error:
        return [Problem(file=str(ckpt_dir), field="weights", value=str(weights), expected=str(error))]
    except OSError as error:  # the store failed, or the disk is full
        return [store_problem(error, ckpt_dir)]
    except InputError as error:
        return list(error.problems)
    return [checkpoint_problem(error, ckpt_dir / path) for path, error in found]


def missing_file_problems(ckpt_dir: Location, model_name: str, weights: WeightFormat) -> list[Problem]:
    """A problem for each file of a model that is missing in a store."""
    expected = f"a file of model {model_name}, at the path that `ovi-ray weights download` gives it on a disk"
    return [
        Problem(file=str(ckpt_dir / file), value="no such file", expected=expected)
        for file in missing_files(ckpt_dir, model_name, weights)
    ]


def checkpoint_problem(error: CheckpointError, path: Location) -> Problem:
    """A checkpoint error as an input problem."""
    return Problem(file=str(path), value=error.found, expected=error.expected)


def store_problem(error: OSError, ckpt_dir: Location) -> Problem:
    """A checkpoint folder that cannot be read, as an input problem."""
    return Problem(file=str(ckpt_dir), value=plain_reason(error), expected="a checkpoint folder that can be read")
