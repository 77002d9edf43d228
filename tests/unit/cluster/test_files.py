"""Every file under `cluster` that is not run by another test: schemas, linters, links."""

import itertools
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from ovi_ray.inputs.cluster_profile import read_profile
from tests.support.cli import ROOT
from tests.support.console import command_of, printed_lines, words_of
from tests.support.s3 import free_port

CLUSTER = ROOT / "cluster"
PROGRAMS = Path(sys.executable).parent
READMES = ("README.md", "*/README.md")
CHECKED_HERE = ("profiles/*.yaml", "containers/Dockerfile.*", "cloud/ray-*.yaml", "cloud/skypilot.yaml", *READMES)
ASSIGNMENT, FILE = re.compile(r"\w+="), re.compile(r"(\./)?\w[\w./-]*(\.yaml|\.txt|\.cuda|\.rocm|\.cpu)$|\./\w+$")
OF_THE_USER = {"job.yaml"}
CHECKED_ELSEWHERE = {
    "bare/*": "tests/unit/cluster/test_rack.py",
    "kubernetes/*.yaml": "tests/unit/submission/test_kubernetes.py",
    "grafana/*": "tests/unit/report",
}


def found(*patterns):
    return sorted(path for pattern in patterns for path in CLUSTER.glob(pattern) if path.is_file())


def names(path):
    return str(path.relative_to(CLUSTER))


def test_every_file_has_a_check():
    everything = {path for path in CLUSTER.rglob("*") if path.is_file()}
    assert everything == set(found(*CHECKED_HERE, *CHECKED_ELSEWHERE))
    assert all((ROOT / place).exists() for place in CHECKED_ELSEWHERE.values())


@pytest.mark.parametrize("path", found("profiles/*.yaml"), ids=names)
def test_every_profile_can_be_read(path):
    assert read_profile(path).devices


@pytest.mark.parametrize("path", found(*READMES), ids=names)
def test_every_link_leads_to_a_file(path):
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


COMMANDS = [
    pytest.param(path, words, id=f"{names(path)} {' '.join(words)}")
    for path in found(*READMES)
    for line, _ in printed_lines(path.read_text())
    for words in words_of(line)
]


@pytest.mark.parametrize(("path", "words"), COMMANDS)
def test_every_command_of_a_readme_can_be_read_and_names_files_that_are_there(path, words):
    words = list(itertools.dropwhile(ASSIGNMENT.match, words))
    if "ovi-ray" in words[:1]:
        command, name, arguments = command_of(words[1:])
        command.make_context(name, arguments)
    named = [word for word in words if FILE.match(word) and word not in OF_THE_USER]
    assert [name for name in named if not (path.parent / name).exists() and not (ROOT / name).exists()] == []


# -- containers ------------------------------------------------------------------------------------------------------------

DOCKERFILES = found("containers/Dockerfile.*")


@pytest.mark.parametrize("path", DOCKERFILES, ids=names)
def test_hadolint_finds_nothing_in_a_dockerfile_whose_base_is_pinned(path):
    found_by_it = subprocess.run([PROGRAMS / "hadolint", path], capture_output=True, text=True, check=False)
    assert (found_by_it.returncode, found_by_it.stdout) == (0, "")
    assert re.search(r"^FROM \S+:\d+\.\d+\.\d+\S*@sha256:[0-9a-f]{64}$", path.read_text(), re.MULTILINE)


def test_all_images_have_the_same_python_and_install_the_same():
    def part(pattern):
        return {tuple(re.findall(pattern, path.read_text(), re.MULTILINE)) for path in DOCKERFILES}

    assert len(part("^FROM .+$")) == len(part(r"^COPY .+$")) == len(part(r"^RUN pip install .+ '\..+$")) == 1


# -- clouds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", found("cloud/ray-*.yaml"), ids=names)
def test_ray_accepts_its_launchers_file_which_has_spot_workers_and_a_token(path):
    config = yaml.safe_load(path.read_text())
    jsonschema.validate(config, json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text()))
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for kind in kinds.values())
    assert all(kind["labels"]["vendor"] in ("nvidia", "amd") for kind in kinds.values())
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert [line.split()[0] for line in starts] == ["RAY_AUTH_MODE=token"] * 2


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Devices(Part):
    accelerators: Annotated[str, Field(pattern=r"^[\w-]+:\d+$")]
    use_spot: bool = False


class Recovery(Part):
    max_restarts_on_errors: Annotated[int, Field(ge=0)]
    recover_on_exit_codes: list[Annotated[int, Field(ge=0, le=255)]]


class Resources(Part):
    any_of: list[Devices]
    image_id: Annotated[str, Field(pattern=r"^docker:\S+:\d")]
    job_recovery: Recovery


class Task(Part):
    """The fields of a task of SkyPilot 0.14 that are used (sky/utils/schemas.py)."""

    name: str
    num_nodes: Annotated[int, Field(ge=1)]
    resources: Resources
    workdir: Literal["."]
    envs: dict[str, str]
    secrets: dict[str, Any]
    run: str


def test_the_task_of_skypilot_has_its_fields_and_recovers_only_from_what_other_machines_could_mend(tmp_path):
    task = Task(**yaml.safe_load((CLUSTER / "cloud" / "skypilot.yaml").read_text()))
    assert not {1, 2} & set(task.resources.job_recovery.recover_on_exit_codes)
    (tmp_path / "run.sh").write_text(f"#!/bin/bash\n{task.run}")
    subprocess.run([PROGRAMS / "shellcheck", tmp_path / "run.sh"], check=True)


STUB = """\
#!/bin/bash
echo "$(basename "$0") $*" >>{folder}/calls
case "$*" in
"start --head"*) exec {python} -c "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)" ;;
esac
exit {code}
"""


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_task_of_skypilot_ends_with_the_code_of_its_driver_and_ends_its_ray(tmp_path, code):
    task, port = yaml.safe_load((CLUSTER / "cloud" / "skypilot.yaml").read_text()), free_port()
    for name in ("ray", "ovi-ray"):
        (tmp_path / name).write_text(STUB.format(folder=tmp_path, python=sys.executable, code=code, port=port))
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_IPS": "127.0.0.1\n10.0.0.2"}
    more = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    run = task["run"].replace("6379", str(port))
    done = subprocess.run(["bash", "-c", run], env=environment | more, check=False, timeout=60)
    assert done.returncode == code
    start, render = (tmp_path / "calls").read_text().splitlines()
    assert "--num-gpus 8" in start
    assert render == f"ovi-ray render job.yaml --address 127.0.0.1:{port}"
