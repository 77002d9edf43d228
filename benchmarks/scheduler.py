"""Makespan over its lower bound, on the clusters of cluster/profiles and in difficult scenarios, for each scheduling policy.

python benchmarks/scheduler.py [--json] [--quick]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from yardsticks.baseline_policies import SCHEDULERS
from yardsticks.scenarios import Scenario, bound_of, make_workload, scenarios, tails

from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.simulation.virtual_cluster import simulate, virtual_devices

PROFILES = Path(__file__).parents[1] / "cluster" / "profiles"
CLIPS = {"a": 2_000, "b": 2_000, "c": 2_000, "d": 100_000}


def rows_for(scenario: Scenario, cluster: str, *, named: bool) -> list[dict[str, Any]]:
    """One row per policy."""
    bound = bound_of(scenario)
    rows = []
    for name, make_scheduler in SCHEDULERS.items():
        scheduler = make_scheduler(scenario.workload, scenario.config)
        outcome = simulate(scenario.workload, scenario.devices, scheduler=scheduler)
        row: dict[str, Any] = {"scenario": scenario.name} if named else {}
        row |= {"cluster": cluster, "policy": name, "clips": scenario.workload.clips}
        row |= {"makespan_s": round(outcome.makespan_s, 1), "bound_s": round(bound, 1)}
        rows.append(row | {"ratio": round(outcome.makespan_s / bound, 4)})
    return rows


def measure_all(shrink: int) -> list[dict[str, Any]]:
    """Every cluster, then every scenario on cluster b."""
    rows = []
    for cluster, clips in CLIPS.items():
        devices = tuple(virtual_devices(read_profile(PROFILES / f"{cluster}.yaml")))
        scenario = Scenario(name=cluster, workload=make_workload(clips // shrink), devices=devices)
        rows += rows_for(scenario, cluster, named=False)
    profile = read_profile(PROFILES / "b.yaml")
    for scenario in scenarios(profile, CLIPS["b"] // shrink) + tails(profile):
        rows += rows_for(scenario, "b", named=True)
    return rows


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    parser.add_argument("--quick", action="store_true", help="a tenth of the clips")
    options = parser.parse_args()
    rows = measure_all(10 if options.quick else 1)
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    for row in rows:
        name = f"{row['cluster']}  {row.get('scenario', '')}"
        print(
            f"{name:68} {row['policy']:16} {row['clips']:>7} {row['makespan_s']:>10} {row['bound_s']:>10} {row['ratio']}"
        )


if __name__ == "__main__":
    main()
