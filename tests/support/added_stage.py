"""A job with one more stage in the table, in a process of its own: python -m tests.support.added_stage FOLDER

The stage, which reads every text once more, exists only in the source of `ovi.stages` as this process loads it: nothing else
knows of it. Prints what the rest of the program made of it, as JSON.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

ADDITIONS = {
    '    DECODE = "decode"\n': '    PROOFREAD = "proofread"\n',
    '    """Denoised video and audio latents of one clip."""\n': '    PROOF = "proof"\n',
    "STAGES: Mapping[Stage, StageSpec] = MappingProxyType(\n    {\n": """
        Stage.PROOFREAD: StageSpec(
            order=-1,
            components=frozenset({Component.TEXT_ENCODER}),
            main_component=Component.TEXT_ENCODER,
            inputs=(),
            output=DataKind.PROOF,
            item=WorkItem.TEXT,
            batched=True,
            tflop=encode_text_tflop,
            assumed_tflops=25.0,
            activations=Activations(key="proofread", units=constant, assumed_gb=3.0),
            label="proofs",
            time_group="encode",
        ),
""",
    "            inputs=(DataKind.TEXT, DataKind.FIRST_FRAME": ", DataKind.PROOF",
}


def load_with_one_more_stage():
    """Load `ovi.stages` with ADDITIONS, before anything else imports it."""
    spec = importlib.util.find_spec("ovi.stages")
    source = Path(spec.origin).read_text(encoding="utf-8")
    for place, addition in ADDITIONS.items():
        assert source.count(place) == 1, place
        source = source.replace(place, place + addition)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ovi.stages"] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)


def render(folder):
    from ovi_ray.inputs.cluster_profile import Activations, Tflops
    from ovi_ray.inputs.task_table import workload_of
    from ovi_ray.output.results import Results
    from ovi_ray.report.history_reader import clip_history
    from ovi_ray.runtime.device_profiles import device_profile
    from ovi_ray.runtime.driver import Driver
    from ovi_ray.scheduling.device_profile import DeviceProfile
    from ovi_ray.simulation.lower_bound import bound_problem, makespan_bound
    from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate
    from tests.support.fake_executor import FakeExecutor, info
    from tests.support.recording_observer import RecordingObserver
    from tests.support.tables import make_tasks

    tasks, executor, observer = make_tasks(folder), FakeExecutor(), RecordingObserver()
    driver = Driver(tasks, executor, Results(folder / "out"), dtype="float32", clock=executor.clock, observer=observer)
    driver.run()
    workload, profile = workload_of(tasks), DeviceProfile(name="gpu", memory_gb=80.0)
    devices = [VirtualDevice(name="gpu-0", profile=profile)]
    outcome = simulate(workload, devices)
    recorded = SimpleNamespace(
        workload=workload, clip_ids=tasks.clips.column("clip_id").to_pylist(), number=1, entries=lambda: observer.cycles
    )
    return {
        "rate": profile.rates.of("proofread"),
        "rate_of_worker": device_profile(info(), "bfloat16").rates.of("proofread"),
        "memory_gb": profile.needed_gb("proofread", workload.kinds[0]) - profile.sizes.text_encoder,
        "profile_schema": [*Tflops.model_fields, *Activations.model_fields],
        "busy_s": outcome.busy_s["gpu"]["proofread"],
        "bound": [work_type.stage for work_type in bound_problem(workload, devices).work],
        "bound_s": makespan_bound(workload, devices),
        "makespan_s": outcome.makespan_s,
        "rows": [(row["status"], row["encode_s"]) for row in Results(folder / "out").read().to_pylist()],
        "worker_s": driver.worker_times()[0].encode_s,
        "progress": {stage: counts.done for stage, counts in driver.progress().stages.items()},
        "history": [task.stage for task in clip_history(recorded, 0).tasks],
        "inputs_of_denoise": [
            str(key.kind) for s in executor.submissions if s.task.stage == "denoise" for key in s.inputs
        ],
    }


if __name__ == "__main__":
    load_with_one_more_stage()
    print(json.dumps(render(Path(sys.argv[1]))))
