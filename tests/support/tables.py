"""Task tables of small jobs."""

from ovi.config import Architecture
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import build_manifest
from ovi_ray.inputs.task_table import TaskTable


def make_tasks(folder, prompts=("a fox", "a dog"), **options):
    path = folder / "prompts.jsonl"
    path.write_text("".join(f'{{"text_prompt": "{prompt}"}}\n' for prompt in prompts), encoding="utf-8")
    job = JobSpec.from_options(prompts=path, ckpt_dir=folder, output_dir=folder / "out", sample_steps=4, **options)
    return TaskTable.of(build_manifest(job, Architecture(), weights=lambda name: "w", numerics="float32"))
