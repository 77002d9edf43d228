"""Storage formats of the transformer's weights (no torch)."""

import dataclasses
from enum import StrEnum

from ovi.config import ModelSpec
from ovi.errors import InvalidRequest

FP8_FILE = "Ovi/model_fp8_e4m3fn.safetensors"
FP8_MODEL = "720x720_5s"
FP8_REPOSITORY = "rkfg/Ovi-fp8_quantized"


class WeightFormat(StrEnum):
    """Storage of the transformer's matrices in memory; the other components keep the pipeline's dtype."""

    DTYPE = "dtype"
    """The dtype that the pipeline computes in."""
    QINT8 = "qint8"
    """8-bit integers with a scale per row, quantized locally and cached: half the memory, different pixels."""
    FP8 = "fp8"
    """The published 8-bit floats, widened before each product: half the memory, different pixels."""


def in_format(spec: ModelSpec, weights: WeightFormat) -> ModelSpec:
    """`spec` with the transformer file of a weight format. Raises InvalidRequest as `check_format` does."""
    check_format(weights, spec)
    return dataclasses.replace(spec, checkpoint=FP8_FILE) if weights is WeightFormat.FP8 else spec


def check_format(weights: WeightFormat, spec: ModelSpec) -> None:
    """Raise InvalidRequest if a model is not published in a weight format."""
    if weights is WeightFormat.FP8 and spec.name != FP8_MODEL:
        raise InvalidRequest(
            f"weights is {str(weights)!r}, which is not published for model {spec.name}; expected model_name {FP8_MODEL},"
            " or weights 'qint8'"
        )
