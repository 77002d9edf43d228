"""Jobs on Kubernetes: the manifests by the rules of Kubernetes and KubeRay, and the client against a fake API server."""

import base64
import io
import random
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from ovi_ray.errors import ClusterError, InputError
from ovi_ray.submission.kuberay import MAX_JOB_NAME_CHARS, RayCluster, RayJob
from ovi_ray.submission.kubernetes import KubernetesTarget
from ovi_ray.submission.kubernetes_manifest import (
    HEAD_PRE_STOP,
    START_FILE,
    WORKER_PRE_STOP,
    KubernetesConfig,
    manifests_of,
    ray_job_name,
)
from ovi_ray.submission.states import JobState
from ovi_ray.submission.targets import find_target
from tests.support.cli import ROOT
from tests.support.fake_kubernetes import FakeKubernetes, running_kubernetes
from tests.support.listening import answer_of, listening

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
PROFILE = "cluster/profiles/b.yaml"  # 16 NVIDIA and 8 AMD devices
IMAGE = "registry.example/ovi-ray:1.0.0-cuda"
SHARED = {"claim": "shared", "mount_path": "/shared"}
BOTH = {"nvidia": {"gpus_per_node": 8}, "amd": {"image": "registry.example/ovi-ray:1.0.0-rocm", "gpus_per_node": 4}}
KUBERNETES_VERSION = "1.34"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with running_kubernetes(FakeKubernetes()) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path)))
        yield running


@pytest.fixture
def bundle_of_volume(make_bundle):
    """A job whose folders lie on the volume that `target` has."""

    def make(**options):
        return make_bundle(**{"ckpt_dir": "/shared/ckpts", "output_dir": "/shared/out", **options})

    return make


def target_config(**keys):
    return KubernetesConfig(**{"image": IMAGE, "volumes": [SHARED], **keys})


def target(**keys):
    return KubernetesTarget("farm", target_config(**keys))


def documents(text):
    *config_maps, job = yaml.safe_load_all(text)
    return config_maps, job


def templates(cluster_spec):
    return [cluster_spec["headGroupSpec"]["template"], *(g["template"] for g in cluster_spec["workerGroupSpecs"])]


def validate_pods(cluster_spec):
    for template in templates(cluster_spec):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


def problems_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return {problem.field: problem for problem in caught.value.problems}


# -- manifests -------------------------------------------------------------------------------------------------------------

EVERY_KEY = {
    "groups": {
        **BOTH,
        "amd": {**BOTH["amd"], "node_selector": {"gpu": "mi300x"}, "tolerations": ["spot"], "memory_gb": 900},
    },
    "namespace": "video",
    "queue": "night",
    "volumes": [SHARED, {"host_path": "/var/cache/ovi", "mount_path": "/root/.cache/ovi-ray"}],
    "secrets": ["s3"],
    "run_as_user": 1000,
    "retries": 0,
    "keep_s": 0,
}


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        ({"gpus_per_node": 2}, {"device": "gpu", "workers": 5}),
        (EVERY_KEY, {"device": "gpu", "cluster": PROFILE}),
    ],
)
def test_every_manifest_passes_the_rules_of_kubernetes_and_of_the_operator(bundle_of_volume, keys, options):
    config_maps, job = documents(target(**keys).script(bundle_of_volume(**options)))
    RayJob(**job)
    validate_pods(job["spec"]["rayClusterSpec"])
    for config_map in config_maps:
        kubernetes_validate.validate(config_map, KUBERNETES_VERSION, strict=True)


def test_two_vendors_are_two_groups_with_the_gpus_of_the_profile(bundle_of_volume):
    _, job = documents(target(groups=BOTH).script(bundle_of_volume(device="gpu", cluster=PROFILE)))
    nvidia, amd = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (nvidia["replicas"], nvidia["labels"], amd["replicas"], amd["labels"]) == (
        2,
        {"vendor": "nvidia"},
        2,
        {"vendor": "amd"},
    )
    for group, resource, gpus in ((nvidia, "nvidia.com/gpu", "8"), (amd, "amd.com/gpu", "4")):
        spec = group["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"][resource] == gpus
        assert {"key": resource, "operator": "Exists"} in spec["tolerations"]


def test_a_job_of_one_vendor_leaves_the_group_of_the_other_out(bundle_of_volume, tmp_path):
    profile = yaml.safe_load(Path(PROFILE).read_text())
    profile["devices"] = {name: d for name, d in profile["devices"].items() if d["vendor"] == "amd"}
    (tmp_path / "amd.yaml").write_text(yaml.safe_dump(profile))
    _, job = documents(target(groups=BOTH).script(bundle_of_volume(device="gpu", cluster=tmp_path / "amd.yaml")))
    assert [group["groupName"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == ["amd"]


def test_the_files_of_a_job_come_out_of_the_pieces_as_they_went_in(bundle_of_volume, tmp_path):
    image = random.Random(0).randbytes(1_200_000)  # which does not fit into one ConfigMap
    bundle = replace(bundle_of_volume(), files={"job.yaml": b"seed: 1\n", "images/a b.png": image})
    manifests = manifests_of(bundle, target_config(), target="farm")
    config_maps, job = manifests.files, manifests.job
    assert len(config_maps) > 1
    assert all(len(base64.b64decode(data)) < 1 << 20 for piece in config_maps for data in piece["binaryData"].values())
    for pod in templates(job["spec"]["rayClusterSpec"]):
        (pieces,) = (volume["projected"] for volume in pod["spec"]["volumes"] if volume["name"] == "pieces")
        assert [source["configMap"]["name"] for source in pieces["sources"]] == [
            m["metadata"]["name"] for m in config_maps
        ]
        (unpack,) = pod["spec"]["initContainers"]
    folder = tmp_path / "pod"
    for name in ("pieces", "job"):
        (folder / name).mkdir(parents=True)
    for piece in config_maps:
        for name, data in piece["binaryData"].items():
            (folder / "pieces" / name).write_bytes(base64.b64decode(data))
    subprocess.run([part.replace("/ovi-ray", str(folder)) for part in unpack["command"]], check=True)
    assert {name: (folder / "job" / name).read_bytes() for name in bundle.files} == dict(bundle.files)


def test_files_that_a_cluster_does_not_keep_are_refused(bundle_of_volume):
    bundle = replace(bundle_of_volume(), files={"noise": random.Random(0).randbytes(21_000_000)})
    (problem,) = problems_of(lambda: target().script(bundle)).values()
    assert "at most 20 MB" in problem.expected


@pytest.mark.parametrize("job_id", ["night-0123456789", f"{'a' * 40}-0123456789", f"9{'x' * 20}-0123456789"])
def test_a_name_is_one_that_the_operator_takes_and_ends_with_the_digest(job_id):
    names = [ray_job_name(job_id, restarts) for restarts in (0, 1, 98)]
    assert all(len(name) <= MAX_JOB_NAME_CHARS and name[0].isalpha() for name in names)
    assert names[0].endswith("-0123456789")
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("keys", "options", "field", "words"),
    [
        ({"image": None}, {}, "image", "cluster/containers"),
        ({"image": "ovi-ray:latest"}, {}, "image", "a tag other than latest"),
        ({"image": "registry:5000/ovi-ray"}, {}, "image", "a tag other than latest"),
        ({"gpus_per_node": 0}, {"device": "gpu"}, "gpus_per_node", "at least 1"),
        ({"groups": {"intel": {}}}, {}, "groups", "nvidia and amd"),
        ({"groups": {"nvidia": {}}}, {"device": "gpu", "cluster": PROFILE}, "groups", "a group for amd"),
        ({}, {"output_dir": "/tmp/out"}, "output_dir", "a folder under /shared"),
        ({}, {"ckpt_dir": "/sharedx/ckpts"}, "ckpt_dir", "a folder under /shared"),
        ({"volumes": [SHARED, {"mount_path": "/x"}]}, {}, "volumes", "either claim or host_path"),
    ],
)
def test_what_a_cluster_would_refuse_or_lose_is_told_before_it_is_asked(bundle_of_volume, keys, options, field, words):
    problem = problems_of(lambda: target(**keys).script(bundle_of_volume(**options)))[field]
    assert words in problem.expected


def test_folders_in_a_store_need_no_volume(make_bundle):
    target(volumes=[]).script(make_bundle(ckpt_dir="s3://b/ckpts", output_dir="s3://b/out"))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 143])
def test_only_a_failure_that_another_cluster_could_mend_is_one_to_the_operator(bundle_of_volume, tmp_path, code):
    bundle = replace(bundle_of_volume(), render_options=("--notify", "https://chat.example/?a=1&b=2"))
    config_maps, _ = documents(target().script(bundle))
    packed = b"".join(base64.b64decode(data) for piece in config_maps for data in piece["binaryData"].values())
    zipfile.ZipFile(io.BytesIO(packed)).extractall(tmp_path)
    assert " --notify 'https://chat.example/?a=1&b=2'\n" in (tmp_path / START_FILE).read_text()
    subprocess.run([SHELLCHECK, tmp_path / START_FILE], check=True)
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\ncase $* in *--version) echo "ovi-ray 1.2.3 (x)" ;; *render*) exit {code} ;; esac\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", tmp_path / START_FILE],
        env={"PATH": f"{stub.parent}:/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == (0 if code in (0, 1, 2) else code)
    assert done.stdout.splitlines()[-1] == b"ovi-ray: the job ended with exit code %d" % code


def job_of(bundle, **changes):
    _, job = documents(target().script(bundle))
    job["spec"].update(changes)
    return job


def set_group(job, **changes):
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(changes)


def set_pod(job, **changes):
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(entryPoint="x"),
        lambda job: job["spec"].update(entrypoint="sh x; rm y"),
        lambda job: job["spec"].update(backoffLimit=-1),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        lambda job: job["spec"].update(runtimeEnvYAML="- x"),
        lambda job: job["metadata"].update(name="a" * 48),
        lambda job: job["metadata"].update(name="A"),
        lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"),
        lambda job: job["spec"]["rayClusterSpec"].update(autoscalerOptions={"version": "v2"}),
        lambda job: job["spec"]["rayClusterSpec"].update(workerGroupSpecs=[]),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"].extend(
            job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        ),
        lambda job: set_group(job, replicas=0),
        lambda job: set_group(job, rayStartParams={"labels": "vendor=amd"}),
        lambda job: set_group(job, rayStartParams={"num-cpus": 0}),
        lambda job: set_pod(job, terminationGracePeriodSeconds=30),
        lambda job: set_pod(job, containers=[]),
    ],
)
def test_the_model_refuses_what_the_operator_would(bundle_of_volume, spoil):
    job = job_of(bundle_of_volume())
    RayJob(**job)
    spoil(job)
    with pytest.raises(ValidationError):
        RayJob(**job)


# -- the API server --------------------------------------------------------------------------------------------------------


def test_a_job_is_created_once_with_its_files_and_found_again(cluster, bundle_of_volume):
    bundle = bundle_of_volume()
    target().check(bundle)
    assert cluster.ray_jobs == {}
    first, second = target().submit(bundle), target().submit(bundle)
    assert (first.state, first.native_id, first.output_dir) == (JobState.RUNNING, bundle.job_id, "/shared/out")
    assert second == first
    (job,) = cluster.ray_jobs.values()
    for piece in cluster.config_maps.values():
        (owner,) = piece["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["kind"]) == (job["metadata"]["uid"], "RayJob")
    assert [found.job_id for found in target().jobs()] == [bundle.job_id]
    assert all("/namespaces/video/" in path for path in cluster.requests if "/namespaces/" in path)


def test_files_that_a_submission_left_out_are_shipped_by_the_next(cluster, bundle_of_volume):
    target().submit(bundle_of_volume())
    names = set(cluster.config_maps)
    cluster.config_maps.clear()
    target().submit(bundle_of_volume())
    assert set(cluster.config_maps) == names


def test_several_that_submit_the_same_job_start_it_once(cluster, bundle_of_volume):
    bundle, states = bundle_of_volume(), []
    threads = [threading.Thread(target=lambda: states.append(target().submit(bundle))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(cluster.ray_jobs), len(states)) == (1, 4)


@pytest.mark.parametrize(
    ("code", "state"), [(0, JobState.SUCCEEDED), (1, JobState.FAILED), (2, JobState.FAILED), (3, JobState.FAILED)]
)
def test_the_end_of_a_job_has_the_exit_code_of_its_driver(cluster, bundle_of_volume, code, state):
    bundle = bundle_of_volume()
    target().submit(bundle)
    cluster.end(bundle.job_id, code)
    status = target().status(bundle.job_id)
    assert (status.state, status.exit_code) == (state, code)
    again = target().submit(bundle)
    if state is JobState.SUCCEEDED:
        assert len(cluster.ray_jobs) == 1
    else:
        assert (again.native_id, again.restarts, again.state) == (f"{bundle.job_id}-2", 1, JobState.RUNNING)


def test_a_job_whose_log_is_gone_is_not_said_to_have_succeeded(cluster, bundle_of_volume):
    bundle = bundle_of_volume()
    target().submit(bundle)
    cluster.end(bundle.job_id, 0)
    cluster.pods.clear()
    assert target().status(bundle.job_id).state is JobState.UNKNOWN


def test_a_stopped_job_is_suspended_and_goes_on_when_it_is_submitted_again(cluster, bundle_of_volume):
    bundle = bundle_of_volume()
    target().submit(bundle)
    assert target().stop(bundle.job_id).state is JobState.RUNNING
    assert cluster.ray_jobs[bundle.job_id]["spec"]["suspend"] is True
    cluster.report(bundle.job_id, "Suspending", "RUNNING")
    assert target().status(bundle.job_id).state is JobState.RUNNING  # it saves
    cluster.report(bundle.job_id, "Suspended")
    assert target().status(bundle.job_id).state is JobState.STOPPED
    assert target().stop(bundle.job_id).state is JobState.STOPPED
    again = target().submit(bundle)
    assert (again.native_id, again.restarts) == (bundle.job_id, 1)
    assert cluster.ray_jobs[bundle.job_id]["spec"]["suspend"] is False
    cluster.run(bundle.job_id, b"")
    cluster.end(bundle.job_id, 3)
    assert target().submit(bundle).native_id == f"{bundle.job_id}-3"


def test_a_job_in_a_queue_is_stopped_and_continued_through_the_queue(cluster, bundle_of_volume):
    bundle, queued = bundle_of_volume(), target(queue="night")
    queued.submit(bundle)
    job = cluster.ray_jobs[bundle.job_id]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    with pytest.raises(ClusterError, match="has not seen"):
        queued.stop(bundle.job_id)
    owner = {"uid": job["metadata"]["uid"]}
    cluster.workloads = {
        "own": {"metadata": {"name": "own", "ownerReferences": [owner]}, "spec": {}},
        "other": {"metadata": {"name": "other"}, "spec": {}},
    }
    queued.stop(bundle.job_id)
    assert (cluster.workloads["own"]["spec"], cluster.workloads["other"]["spec"]) == ({"active": False}, {})
    assert "suspend" not in job["spec"]
    cluster.report(bundle.job_id, "Suspended")
    assert queued.status(bundle.job_id).state is JobState.STOPPED
    queued.submit(bundle)
    assert cluster.workloads["own"]["spec"] == {"active": True}
    waiting = queued.status(bundle.job_id)
    assert (waiting.state, waiting.message) == (JobState.PENDING, "it waits in its queue")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: 3 Insufficient"}]},
            "Insufficient",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "ImagePullBackOff: no such image",
        ),
    ],
)
def test_a_job_that_waits_says_for_what(cluster, bundle_of_volume, status, words):
    cluster.starts_jobs = False
    bundle = bundle_of_volume()
    assert target().submit(bundle).state is JobState.PENDING
    cluster.report(bundle.job_id, "Initializing", rayClusterName="c")
    cluster.add_pod("head", labels={"ray.io/cluster": "c"}, conditions=[{"type": "PodScheduled", "status": "True"}])
    cluster.add_pod("worker", labels={"ray.io/cluster": "c"}, **status)
    told = target().status(bundle.job_id)
    assert (told.state, words in told.message) == (JobState.PENDING, True)
    assert b"".join(target().logs(bundle.job_id, follow=False)) == b""


def test_another_cluster_after_a_failure_counts_as_a_restart(cluster, bundle_of_volume):
    bundle = bundle_of_volume()
    target().submit(bundle)
    cluster.report(bundle.job_id, "Retrying", "", failed=2)
    status = target().status(bundle.job_id)
    assert (status.state, status.restarts) == (JobState.PENDING, 2)


def test_a_log_is_followed_over_connections_that_end_until_the_job_does(cluster, bundle_of_volume):
    bundle = bundle_of_volume()
    target().submit(bundle)
    cluster.piece_bytes = 10
    pieces = target().logs(bundle.job_id, follow=True)
    seen = next(pieces)
    cluster.logs[f"{bundle.job_id}-submitter"] += b"\xff\xfe not text\n"
    cluster.piece_bytes = 1 << 20
    cluster.end(bundle.job_id, 0)
    seen += b"".join(pieces)
    assert seen == cluster.logs[f"{bundle.job_id}-submitter"]
    assert b"".join(target().logs(bundle.job_id, follow=False)) == seen


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"has_kuberay": False}, "no KubeRay"),
        ({"refusal": (401, "Unauthorized")}, "does not know you"),
        ({"refusal": (403, 'rayjobs is forbidden: User "me" cannot list')}, "may not list RayJobs"),
        ({"refusal": (500, "etcd is away")}, "answered 500"),
        ({"node_resources": {"cpu": "8"}}, "no node of the cluster has nvidia.com/gpu"),
    ],
)
def test_a_cluster_that_cannot_run_a_job_is_told_with_what_to_do(cluster, bundle_of_volume, state, words):
    for name, value in state.items():
        setattr(cluster, name, value)
    with pytest.raises(ClusterError, match=words):
        target().check(bundle_of_volume(device="gpu"))


def test_gpus_that_cannot_be_counted_or_come_later_stop_no_job(cluster, bundle_of_volume):
    cluster.node_resources = None
    assert "1 pod with 1 nvidia GPU" in target().check(bundle_of_volume(device="gpu"))
    cluster.node_resources = {}
    target(scales_from_zero=True).check(bundle_of_volume(device="gpu"))


def test_claims_and_queues_that_are_not_there_are_told_together(cluster, bundle_of_volume):
    cluster.claims, cluster.queues = set(), set()
    found = problems_of(lambda: target(queue="nigth").check(bundle_of_volume()))
    assert set(found) == {"volumes", "queue"}
    cluster.has_kueue = False
    with pytest.raises(ClusterError, match="no Kueue"):
        target(queue="night").check(bundle_of_volume())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answer_of(b"<html>"), "not as a Kubernetes API server does"),
        (answer_of({}), "not as a Kubernetes API server does"),
        (answer_of(None), "not as a Kubernetes API server does"),
        (answer_of({"items": None}), "not as a Kubernetes API server does"),
        (answer_of({"items": [{}]}), "not as a Kubernetes API server does"),
        (answer_of(b"", "302 Found", Location="https://login.example/"), "answered 302"),
        (answer_of({"items": []})[:-1], "ended within an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
    ],
)
def test_what_is_no_api_server_is_told(tmp_path, monkeypatch, answer, words):
    with listening(answer) as port:
        fake = FakeKubernetes(url=f"http://127.0.0.1:{port}")
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
        with pytest.raises(ClusterError, match=words):
            target().jobs()


@pytest.mark.parametrize("content", [b"", b"[]", b"a: [", b"\0", b"\xff", b"clusters: 5\nusers: 6\ncontexts: 7\n"])
def test_a_kubeconfig_that_is_none_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "config").write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ClusterError, match=f"no cluster is set up in {tmp_path / 'config'}"):
        target().jobs()


def test_what_stands_beside_groups_and_would_not_be_used_is_refused(bundle_of_volume):
    found = problems_of(lambda: target(groups=BOTH, nodes=3, cpus_per_node=4).script(bundle_of_volume(device="gpu")))
    assert set(found) == {"nodes", "cpus_per_node"}


@pytest.mark.parametrize("missing", ["file", "context", "server"])
def test_a_cluster_that_is_not_set_up_or_does_not_answer_is_told(cluster, monkeypatch, tmp_path, missing):
    if missing == "file":
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    context = {"context": "nowhere", "server": "gone"}.get(missing)
    with pytest.raises(ClusterError, match="cannot be reached" if missing == "server" else "no cluster is set up"):
        target(context=context).jobs()


def test_a_job_that_is_not_known_is_told(cluster):
    (problem,) = problems_of(lambda: target().status("night-0123456789")).values()
    assert "namespace video" in problem.expected


def test_kubernetes_needs_no_entry_and_options_go_first(cluster, bundle_of_volume, tmp_path):
    file = tmp_path / "targets.yaml"
    file.write_text(yaml.safe_dump({"farm": {"kind": "kubernetes", "image": IMAGE, "volumes": [SHARED], "nodes": 2}}))
    assert isinstance(find_target("kubernetes", {"image": IMAGE}, file=file), KubernetesTarget)
    _, job = documents(find_target("farm", {"nodes": 3}, file=file).script(bundle_of_volume()))
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    file.write_text("farm: {kind: kubernetes, imge: x, grace_s: 5, volumes: [{mount_path: shared}]}\n")
    fields = {field.split(".")[1] for field in problems_of(lambda: find_target("farm", file=file))}
    assert fields == {"imge", "grace_s", "volumes"}


# -- the files of cluster/kubernetes ---------------------------------------------------------------------------------------

KINDS = {"RayJob": RayJob, "RayCluster": RayCluster}
EXAMPLES = sorted((ROOT / "cluster" / "kubernetes").glob("ray-*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_manifest_of_the_examples_passes_the_rules(path):
    for document in yaml.safe_load_all(path.read_text()):
        if (model := KINDS.get(document["kind"])) is None:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
            continue
        model(**document)
        cluster_spec = document["spec"].get("rayClusterSpec", document["spec"])
        validate_pods(cluster_spec)
        assert {"nvidia.com/gpu", "amd.com/gpu"} <= {
            name
            for template in templates(cluster_spec)
            for name in template["spec"]["containers"][0]["resources"]["limits"]
        }
        for template in templates(cluster_spec):
            (hook,) = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2:]
            assert hook in (HEAD_PRE_STOP, WORKER_PRE_STOP)


def test_the_examples_are_a_job_and_a_cluster():
    kinds = {document["kind"] for path in EXAMPLES for document in yaml.safe_load_all(path.read_text())}
    assert set(KINDS) <= kinds


def test_the_script_of_the_example_spares_another_cluster_what_it_could_not_mend(tmp_path):
    documents = yaml.safe_load_all((ROOT / "cluster" / "kubernetes" / "ray-job.yaml").read_text())
    (script,) = (document["data"]["start.sh"] for document in documents if document["kind"] == "ConfigMap")
    (tmp_path / "start.sh").write_text(script)
    subprocess.run([SHELLCHECK, tmp_path / "start.sh"], check=True)
    for code, expected in ((0, 0), (1, 0), (2, 0), (3, 3), (143, 143)):
        (tmp_path / "python").write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / "python").chmod(0o755)
        done = subprocess.run(["/bin/sh", "start.sh"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/bin"}, check=False)
        assert done.returncode == expected


def test_the_targets_of_the_examples_can_be_submitted_to(make_bundle):
    file = ROOT / "cluster" / "kubernetes" / "targets.yaml"
    for name in yaml.safe_load(file.read_text()):
        bundle = make_bundle(device="gpu", cluster=PROFILE, ckpt_dir="/shared/ckpts", output_dir="s3://videos/night")
        _, job = documents(find_target(name, file=file).script(bundle))
        validate_pods(job["spec"]["rayClusterSpec"])
