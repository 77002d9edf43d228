"""Ray's session lies in a folder whose path is short enough for its sockets."""

import os
import socket
from pathlib import Path

import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.runtime.session_folder import session_folder

LONG = "/scratch-local-slurm-user" * 4
SESSION = f"session_2026-11-26_12-34-56_123456_{os.getpid()}/sockets/plasma_store"


def longest_that_fits():
    return "/" + "x" * (107 - 1 - len(f"/ray/{SESSION}"))


@pytest.mark.parametrize("environment", [{}, {"TMPDIR": "/tmp"}, {"TMPDIR": LONG, "RAY_TMPDIR": "/tmp"}])
def test_rays_own_choice_stays_where_it_fits(environment):
    with session_folder(environment) as folder:
        assert folder is None


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_limit_is_that_of_a_socket(variable):
    with session_folder({variable: longest_that_fits()}) as folder:
        assert folder is None
    with session_folder({variable: longest_that_fits() + "x"}) as folder:
        assert folder is not None
    with session_folder({variable: "/" + "ä" * (len(longest_that_fits()) // 2)}) as folder:  # two bytes each
        assert (folder is None) == (1 + len(longest_that_fits()) // 2 * 2 <= len(longest_that_fits()))


def test_a_short_folder_takes_a_socket_and_is_removed():
    with session_folder({"TMPDIR": LONG}) as folder:
        path = Path(folder, SESSION)
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    assert not Path(folder).exists()


def test_a_folder_that_cannot_be_used_is_passed_over(tmp_path):
    with session_folder({"TMPDIR": LONG}, (str(tmp_path / "none"), LONG, "/tmp")) as folder:
        assert Path(folder).parent == Path("/tmp")


def test_where_no_folder_can_be_used_the_message_names_the_variable_to_set(tmp_path):
    with (
        pytest.raises(
            ClusterError, match=r"TMPDIR=/scratch.*set RAY_TMPDIR to a folder whose path has at most \d\d bytes"
        ),
        session_folder({"TMPDIR": LONG}, (str(tmp_path / "none"),)),
    ):
        pass
