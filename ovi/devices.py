"""Devices of this machine, as torch names them."""

import torch

from ovi.errors import DeviceUnavailable


def usable_device(device: str | torch.device) -> torch.device:
    """A device that torch can use here. Raises DeviceUnavailable."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise _unavailable(device, "no name of a device") from None
    if found.type == "cuda":  # AMD's too
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not 0 <= (found.index or 0) < count:  # torch makes a negative index of one over 127
            reason = f"where torch {torch.__version__} finds {count or 'no'} GPU{'s'[: count != 1]}"
            raise _unavailable(device, reason)
    elif found.type not in ("cpu", "meta"):
        try:
            torch.empty(0, device=found)
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise _unavailable(device, f"which this build of torch cannot use ({str(error).splitlines()[0]})") from None
    return found


def _unavailable(device: str | torch.device, reason: str) -> DeviceUnavailable:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return DeviceUnavailable(str(device), reason, usable=("cpu", *(f"cuda:{index}" for index in range(count))))
