"""The variables that choose the GPUs of a process, in the form in which Ray reads and sets them.

Ray counts AMD GPUs only through the package amdsmi. With it, each worker is given its GPU in HIP_VISIBLE_DEVICES, and Ray
fails where ROCR_VISIBLE_DEVICES is set without it. Without it, Ray takes AMD GPUs for NVIDIA's and sets CUDA_VISIBLE_DEVICES,
which ROCm honours, but only where HIP_VISIBLE_DEVICES is not set.

ROCR_VISIBLE_DEVICES hides GPUs from a whole process; the two others choose, by number, among those that are left.
"""

import logging
import os
from collections.abc import Callable, MutableMapping

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
logger = logging.getLogger(__name__)


def ray_counts_amd_gpus() -> bool:
    """Whether this Ray counts AMD GPUs on this machine."""
    try:
        from ray._private.accelerators.amd_gpu import AMDGPUAcceleratorManager
    except ImportError:  # another version of Ray, which may have mended what is worked around here
        return True
    return bool(AMDGPUAcceleratorManager.get_current_node_num_accelerators())


def choose_as_ray_does(
    environment: MutableMapping[str, str] = os.environ,
    *,
    rocm: bool,
    counts_amd: Callable[[], bool] = ray_counts_amd_gpus,
) -> None:
    """Make a choice of AMD GPUs one that Ray hands on to its workers: change `environment`, and say what was changed.

    `rocm`: torch is built for ROCm. Other processes' GPUs, and those of NVIDIA, are left alone.
    """
    if not (rocm or ROCR in environment) or not (HIP in environment or ROCR in environment):
        return
    if counts_amd():
        if HIP not in environment:
            environment[HIP] = _all_of(environment[ROCR])
            logger.warning("%s is set to %s, because Ray does not take %s alone", HIP, environment[HIP], ROCR)
    elif rocm and HIP in environment:
        environment[CUDA] = environment.pop(HIP)
        logger.warning(
            "%s is given to Ray as %s, which it sets for each worker: it counts AMD GPUs as such only with the package amdsmi",
            HIP,
            CUDA,
        )


def _all_of(chosen: str) -> str:
    """The numbers of all GPUs that a list of ROCR_VISIBLE_DEVICES leaves."""
    return ",".join(str(number) for number, _ in enumerate(filter(None, chosen.split(","))))
