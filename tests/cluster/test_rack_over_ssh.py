"""`cluster/bare/rack` through a real ssh, to a real sshd for each machine, on loopback; no Ray is started."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.bare_rack import VERSION, Rack
from tests.support.s3 import free_port
from tests.support.waiting import wait_until

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
PROGRAMS = {"sshd": SSHD, "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: openssh-server"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an sshd that lets users in"),
]
SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
SetEnv HOME={folder}/{machine} TMPDIR={folder}/{machine}
"""
CLIENT = """\
Host {machine}
  HostName 127.0.0.1
  HostKeyAlias {machine}
  Port {port}
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""
KNOWN, UNKNOWN, AWAY = ("head", "n1", "n2"), "stranger", "away"


@pytest.fixture
def rack(tmp_path):
    """Three machines, one whose key nobody has confirmed, and one that does not answer."""
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    kind, key, *_ = (tmp_path / "host_key.pub").read_text().split()
    (tmp_path / "known_hosts").write_text("".join(f"{machine} {kind} {key}\n" for machine in (*KNOWN, AWAY)))
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself in before it knows a user
    daemons = [_sshd(tmp_path, machine) for machine in (*KNOWN, UNKNOWN)]
    _add_client(tmp_path, AWAY, free_port())
    ssh = f'#!/bin/sh\nexec {PROGRAMS["ssh"]} -F {tmp_path}/ssh_config "$@"\n'
    hosts = "".join(f"{machine}\n" for machine in (*KNOWN, UNKNOWN, AWAY))
    machines = Rack(tmp_path, machines=(*KNOWN, UNKNOWN), hosts=hosts, ssh=ssh)
    wait_until(lambda: all(_answers(machines, machine) for machine in KNOWN))
    try:
        yield machines
    finally:
        machines.run("stop")
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(60)


def _sshd(folder, machine):
    port = free_port()
    _add_client(folder, machine, port)
    config = folder / f"{machine}.sshd"
    config.write_text(SERVER.format(folder=folder, machine=machine, port=port))
    with (folder / f"{machine}.log").open("w") as log:
        return subprocess.Popen([str(SSHD), "-D", "-e", "-f", config], stderr=log)


def _add_client(folder, machine, port):
    with (folder / "ssh_config").open("a") as config:
        config.write(CLIENT.format(folder=folder, machine=machine, port=port))


def _answers(machines: Rack, machine: str) -> bool:
    command: Sequence[object] = [machines.folder / "bin" / "ssh", "-o", "BatchMode=yes", machine, "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_rack_is_started_and_ended_through_ssh_and_who_does_not_answer_is_left_out(rack):
    told = rack("start", code=1)
    assert {machine: told[machine] for machine in KNOWN} == dict.fromkeys(KNOWN, "Ray runs")
    assert "Host key verification failed" in told[UNKNOWN]
    assert "Connection refused" in told[AWAY]
    (head,), (node,) = rack.starts("head"), rack.starts("n1")
    token = (rack.folder / ".ray" / "auth_token").read_text()
    assert "--head" in head
    assert f"--address {head.split('--node-ip-address ')[1].split()[0]}:6379" in node
    assert node.endswith(f"token={token} mode=token version={VERSION.strip()}")
    assert rack.starts(UNKNOWN) == []
    status = rack("status", code=1)
    assert {machine: status[machine] for machine in KNOWN} == dict.fromkeys(KNOWN, "Ray runs")
    stopped = rack("stop", code=1)
    assert {machine: stopped[machine] for machine in KNOWN} == dict.fromkeys(KNOWN, "Ray has ended")
    assert "does not answer and is left out" in stopped[AWAY]
