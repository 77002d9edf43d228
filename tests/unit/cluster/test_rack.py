"""`cluster/bare/rack`, with an ssh that runs the commands here, each machine in a home of its own, and a Python without Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bare_rack import RACK, VERSION, Rack
from tests.support.waiting import wait_until

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SSH = """\
#!/bin/bash
while [ "$1" = -o ]; do shift 2; done
host=$1
echo "$@" >>{folder}/ssh.calls
[ -d {folder}/$host ] || {{ echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; }}
export HOME={folder}/$host TMPDIR={folder}/$host
shift
exec "$@"
"""


@pytest.fixture
def rack(tmp_path):
    def make(machines=("head", "n1", "n2"), hosts="head\nn1 nvidia  # the old one\n\nn2 amd\n"):
        made.append(Rack(tmp_path, machines=machines, hosts=hosts, ssh=SSH.format(folder=tmp_path)))
        return made[-1]

    made = []
    yield make
    for machines in made:
        machines.run("stop")


def test_the_script_is_one_that_shellcheck_finds_nothing_in():
    subprocess.run([SHELLCHECK, RACK], check=True)


def test_every_machine_joins_the_head_with_its_vendor_and_the_token(rack):
    machines = rack()
    assert set(machines("start").items()) >= {("head", "Ray runs"), ("n1", "Ray runs"), ("n2", "Ray runs")}
    (head,), (nvidia,), (amd,) = (machines.starts(name) for name in ("head", "n1", "n2"))
    assert "--head" in head
    assert "--dashboard-host 127.0.0.1" in head
    address = head.split("--node-ip-address ")[1].split()[0]
    assert f"--address {address}:6379" in nvidia
    assert ("--labels vendor=nvidia" in nvidia, "--labels vendor=amd" in amd) == (True, True)
    token = machines.folder / ".ray" / "auth_token"
    for line in (head, nvidia, amd):  # jobs call `python`, whatever the name of the one that has ovi-ray
        assert line.endswith(f"token={token.read_text()} mode=token version={VERSION.strip()}")
    kept = [token, *(machines.folder / name / ".ovi-ray" / "rack" / "token" for name in ("head", "n1"))]
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert token.read_text() not in (machines.folder / "ssh.calls").read_text()
    assert machines("start")["n1"] == "Ray runs already"
    assert set(machines("status").values()) == {"Ray runs"}
    assert set(machines("stop").values()) == {"Ray has ended"}
    assert set(machines("stop").values()) == {"Ray does not run"}
    assert set(machines("status", code=1).values()) == {"Ray does not run"}


def test_a_machine_that_does_not_answer_is_told_and_left_out(rack):
    machines = rack(machines=("head", "n2"))
    told = machines("start", code=1)
    assert "does not answer and is left out" in told["n1"]
    assert "No route to host" in told["n1"]
    assert told["n2"] == "Ray runs"
    assert "does not answer" in machines("status", code=1)["n1"]


def test_without_its_head_nothing_starts(rack):
    machines = rack(machines=("n1", "n2"))
    assert "does not answer" in machines("start", code=3)["head"]
    assert machines.starts("n1") == []


def test_a_machine_with_another_version_or_none_takes_no_work(rack):
    machines = rack()
    (machines.folder / "n1" / "version").write_text("ovi-ray 1.2.4 (Python 3.11.7)\n")
    (machines.folder / "n2" / "version").unlink()
    told = machines("start", code=1)
    assert "it has ovi-ray 1.2.4" in told["n1"]
    assert "has no ovi-ray" in told["n2"]
    assert machines.starts("n1") == machines.starts("n2") == []


def test_a_node_that_ends_is_started_again_and_one_that_cannot_start_says_why_without_colours(rack):
    machines = rack(machines=("head",), hosts="head")
    machines("start")
    for starts in (2, 3):
        subprocess.run(["pkill", "-KILL", "-f", f"raylet {machines.folder}/head/"], check=True)
        wait_until(lambda starts=starts: len(machines.starts("head")) >= starts)
        (machines.folder / "head" / "broken").touch()
    wait_until(lambda: machines.run("status").stdout.endswith("there ends: no GCS\n"), every_s=0.2)


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("head intel\n", "line 1"),
        ("head\n-oProxyCommand=x\n", "no name of a machine"),
        ("# none\n", "names no machine"),
    ],
)
def test_a_list_that_cannot_be_meant_is_told_with_its_lines(rack, hosts, words):
    machines = rack(hosts=hosts)
    done = machines.run("start")
    assert (done.returncode, words in done.stderr) == (2, True)
    assert not (machines.folder / "ssh.calls").exists()
