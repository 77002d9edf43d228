"""Milliseconds that a device waits between two tasks, and the part of them in which the next task's inputs are fetched.

python benchmarks/handover.py [--tasks 60] [--json]

Two nodes of a Ray cluster on this machine, each with an object store of its own: what a worker on one has made is fetched by a
worker on the other through Ray's transfer, with the sizes of a real clip. As the executor does, the driver gives a worker its
next task when the last one has ended. `nothing` has no inputs, `here` those of the worker's own node, `elsewhere` those of the
other node, `expected` too, but named to the worker while its last task still ran, so that they were there.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from ovi.config import MODEL_SPECS, Architecture
from ovi.geometry import latent_grid

NODE = {"num_cpus": 1, "object_store_memory": 400_000_000}
CONTROL = "control"  # as in the worker: answers while a task runs
WAYS = ("nothing", "here", "elsewhere", "expected")
TOKENS = (120, 60, 40)  # of a prompt and its negative ones
TASK_S = 0.05


def denoise_inputs() -> list[int]:
    """Bytes of each input of a denoise: the rows of three texts in bfloat16."""
    return [tokens * Architecture().video.text_dim * 2 for tokens in TOKENS]


def decode_inputs() -> list[int]:
    """Bytes of the input of a decode: a clip's latents in float32."""
    arch, spec = Architecture(), MODEL_SPECS["720x720_5s"]
    rows, columns = latent_grid(720, 720)
    video = arch.video.in_dim * spec.video_latent_length * rows * columns
    return [4 * (video + spec.audio_latent_length * arch.audio.in_dim)]


class Producer:
    """A worker that has made something."""

    def make(self, size: int) -> NDArray[np.uint8]:
        """So many bytes."""
        return np.ones(size, np.uint8)


class Consumer:
    """A worker that is given tasks, and knows how long it had none."""

    def __init__(self) -> None:
        self._ended = time.perf_counter()

    def run(self, *inputs: NDArray[np.uint8]) -> float:
        """Work for a while. Returns the seconds since the end of the last task, to the first byte of each input read."""
        for given in inputs:
            given[0]
        waited = time.perf_counter() - self._ended
        time.sleep(TASK_S)
        self._ended = time.perf_counter()
        return waited

    @ray.method(concurrency_group=CONTROL)  # type: ignore[untyped-decorator]
    def expect(self, *inputs: NDArray[np.uint8]) -> None:
        """Have the inputs of a later task on this node."""


def waits(sizes: list[int], way: str, tasks: int, consumer: Any, here: Any, elsewhere: Any) -> list[float]:
    """Seconds that the consumer waited for each task but the first."""
    producer = here if way == "here" else elsewhere
    given = [[producer.make.remote(size) for size in sizes] if way != "nothing" else [] for _ in range(tasks)]
    for refs in given:
        ray.wait(refs, num_returns=len(refs), fetch_local=False) if refs else None
    found = []
    for number, refs in enumerate(given):
        running = consumer.run.remote(*refs)
        if way == "expected" and number + 1 < tasks:
            consumer.expect.remote(*given[number + 1])
        ray.wait([running], fetch_local=False)
        found.append(ray.get(running))
    return found[1:]


def measure(tasks: int) -> dict[str, Any]:
    """Median milliseconds of each stage's inputs and each way."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    try:
        for name in ("here", "elsewhere"):
            cluster.add_node(**NODE, resources={name: 1})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        at: Any = {name: {"num_cpus": 0, "resources": {name: 0.1}} for name in ("here", "elsewhere")}
        here, elsewhere = (ray.remote(Producer).options(**at[name]).remote() for name in ("here", "elsewhere"))
        consumer = ray.remote(concurrency_groups={CONTROL: 1})(Consumer).options(**at["here"]).remote()
        found: dict[str, Any] = {"tasks": tasks}
        for stage, sizes in (("denoise", denoise_inputs()), ("decode", decode_inputs())):
            times = {way: waits(sizes, way, tasks, consumer, here, elsewhere) for way in WAYS}
            medians = {way: round(1000 * statistics.median(seconds), 2) for way, seconds in times.items()}
            found[stage] = {"input_mb": round(sum(sizes) / 1e6, 2), "waits_ms": medians}
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.tasks)
    if options.json:
        json.dump(found, sys.stdout)
        return
    for stage in ("denoise", "decode"):
        shown = "  ".join(f"{way} {waited} ms" for way, waited in found[stage]["waits_ms"].items())
        print(f"{stage}, inputs of {found[stage]['input_mb']} MB: {shown}")


if __name__ == "__main__":
    main()
