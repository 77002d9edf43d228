"""Versions of torch and cuDNN with faults that are known, and what they do."""

import re

_CUDNN_IN_TWO_DIGITS = 100  # cuDNN counts 91501 for 9.15.1


def known_faults(*, vendor: str, torch_version: str, cudnn: int | None) -> tuple[str, ...]:
    """A line for each known fault of the versions in use on a vendor's GPUs. `cudnn` is `torch.backends.cudnn.version()`."""
    if vendor != "nvidia":
        return ()
    faults = []
    found = re.match(r"(\d+)\.(\d+)", torch_version)
    if found and (int(found[1]), int(found[2])) < (2, 10):
        faults.append(
            f"torch {torch_version} is older than 2.10: 2.9 runs the decoder's bfloat16 Conv3d without cuDNN, several times"
            " slower; install 2.10 or newer"
        )
    if cudnn is not None and cudnn < 91_501:
        wrong = "attention of lengths that 128 does not divide"
        if cudnn <= 91_002:
            wrong += ", and large bfloat16 Conv3d, both silently (seen with 9.10.2)"
        faults.append(
            f"cuDNN {_cudnn_name(cudnn)} is older than 9.15.1: it may compute wrongly {wrong}; install a newer one"
        )
    return tuple(faults)


def _cudnn_name(version: int) -> str:
    """For example "9.10.2" of 91002, and "8.9.7" of 8907, as cuDNN counted before 9."""
    thousands = _CUDNN_IN_TWO_DIGITS**2 if version >= 9 * _CUDNN_IN_TWO_DIGITS**2 else 1000
    return f"{version // thousands}.{version % thousands // _CUDNN_IN_TWO_DIGITS}.{version % _CUDNN_IN_TWO_DIGITS}"
