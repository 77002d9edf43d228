"""How the transformer's weights are stored in memory. Pure: no torch."""

import dataclasses
from enum import StrEnum

from ovi.config import ModelSpec
from ovi.errors import InvalidRequest

FP8_FILE = "Ovi/model_fp8_e4m3fn.safetensors"
FP8_MODEL = "720x720_5s"
FP8_REPOSITORY = "rkfg/Ovi-fp8_quantized"


class WeightFormat(StrEnum):
    """How the transformer's matrices are stored; the other components keep the pipeline's dtype."""

    DTYPE = "dtype"
    """In the dtype they compute in."""
    QINT8 = "qint8"
    """As 8-bit integers with a scale for each row, made here and kept: half the memory, other pixels."""
    FP8 = "fp8"
    """As the published 8-bit floats, widened before each product: half the memory, other pixels."""


def in_format(spec: ModelSpec, weights: WeightFormat) -> ModelSpec:
    """The model with the file that its transformer is read from in a format. Raises InvalidRequest as `check_format`."""
    check_format(weights, spec)
    return dataclasses.replace(spec, checkpoint=FP8_FILE) if weights is WeightFormat.FP8 else spec


def check_format(weights: WeightFormat, spec: ModelSpec) -> None:
    """Raise InvalidRequest when a model is not published in a format."""
    if weights is WeightFormat.FP8 and spec.name != FP8_MODEL:
        raise InvalidRequest(
            f"weights {weights} of model {spec.name} are not published; expected model_name {FP8_MODEL}, or qint8"
        )
