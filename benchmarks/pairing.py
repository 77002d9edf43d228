"""Small jobs with and without denoises on two devices: when the first and the last clip end, on cluster/profiles.

python benchmarks/pairing.py [--json]

Devices of a class stand eight to a machine; those with unified memory stand alone, so nothing is shared there.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from yardsticks.clusters import of_profile
from yardsticks.scenarios import make_workload

from ovi.stages import Stage
from ovi_ray.scheduling.config import Pairing, PairingConfig, SchedulerConfig
from ovi_ray.scheduling.scheduler import Scheduler
from ovi_ray.scheduling.workload import Workload
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate

CLIPS = (1, 2, 3, 5, 8, 12, 20, 40)
CLUSTERS = ("a", "b", "c", "d")
PER_MACHINE = 8
ALONE = "amd-unified"


def machines_of(cluster: str) -> list[VirtualDevice]:
    """The devices of a profile, on machines."""
    devices, places = [], dict[str, int]()
    for device in of_profile(cluster):
        name = device.profile.name
        place = places[name] = places.get(name, -1) + 1
        devices.append(replace(device, node="" if name == ALONE else f"{name} {place // PER_MACHINE}"))
    return devices


def ends(workload: Workload, devices: list[VirtualDevice], when: Pairing) -> tuple[float, float]:
    """Seconds until the first clip has ended, and until the last."""
    scheduler = Scheduler(workload, config=SchedulerConfig(pairing=PairingConfig(when=when)))
    outcome = simulate(workload, devices, scheduler=scheduler, keep_spans=True)
    return min(span.end_s for span in outcome.spans if span.task.stage is Stage.DECODE), outcome.makespan_s


def rows() -> Iterator[dict[str, Any]]:
    """One for each cluster and number of clips."""
    for cluster in CLUSTERS:
        devices = machines_of(cluster)
        for clips in CLIPS:
            workload = make_workload(clips)
            found = {when: ends(workload, devices, when) for when in Pairing}
            first_s, last_s = found[Pairing.OFF]
            yield {
                "cluster": cluster,
                "clips": clips,
                "first_s": round(first_s, 1),
                "last_s": round(last_s, 1),
                **{f"first_{w}": round(found[w][0] / first_s, 3) for w in (Pairing.TAIL, Pairing.ALWAYS)},
                **{f"last_{w}": round(found[w][1] / last_s, 3) for w in (Pairing.TAIL, Pairing.ALWAYS)},
            }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    options = parser.parse_args()
    table = list(rows())
    if options.json:
        json.dump(table, sys.stdout, indent=1)
        return
    print(f"{'cluster':8}{'clips':>6}{'first':>8}{'last':>8}   over that: tail first, last   always first, last")
    for row in table:
        shares = "".join(f"{row[name]:>9}" for name in ("first_tail", "last_tail", "first_always", "last_always"))
        print(f"{row['cluster']:8}{row['clips']:>6}{row['first_s']:>8}{row['last_s']:>8}      {shares}")


if __name__ == "__main__":
    main()
