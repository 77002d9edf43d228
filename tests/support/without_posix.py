"""`ovi-ray` as on a system without POSIX, after an import of every module: `python -m tests.support.without_posix render ...`.

Modules that Windows has not cannot be imported any more, and the program's own modules see `os` and `signal` as they are there.
Other libraries have forms of their own for Windows.
"""

import builtins
import importlib
import importlib.abc
import os
import pkgutil
import signal
import sys
from types import ModuleType

import ray.util.state  # noqa: F401 - Ray takes `resource`, where it is not on Windows
import torch  # noqa: F401

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog")
OF_OS = (
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "getsid",
    "setsid",
    "killpg",
    "statvfs",
    "sysconf",
    "getloadavg",
    "mkfifo",
)
OF_SIGNAL = ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "pthread_sigmask", "alarm", "setitimer")


class Refusal(importlib.abc.MetaPathFinder):
    """Modules that cannot be found."""

    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _without(module, names):
    """A standard module as it is where it has not these names."""
    seen = ModuleType(module.__name__)
    seen.__dict__.update({name: value for name, value in vars(module).items() if name not in names})
    return seen


def hide() -> None:
    """Hide what Windows has not, from modules that are loaded from now on."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Refusal())
    seen, load = {"os": _without(os, OF_OS), "signal": _without(signal, OF_SIGNAL)}, builtins.__import__

    def import_for(name, globals=None, locals=None, fromlist=(), level=0):
        is_ours = str((globals or {}).get("__name__", "")).partition(".")[0] in ("ovi", "ovi_ray")
        return seen[name] if is_ours and name in seen else load(name, globals, locals, fromlist, level)

    builtins.__import__ = import_for


def import_all() -> None:
    """Import every module of both packages."""
    for package in ("ovi", "ovi_ray"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


if __name__ == "__main__":
    hide()
    import_all()
    from ovi_ray.cli import main

    main()
