"""Makespan over its lower bound, on the clusters of cluster/profiles and in difficult scenarios, for each scheduling policy.

python benchmarks/scheduler.py [--json] [--quick | --random CLUSTERS [--seed SEED]]
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from yardsticks.baseline_policies import SCHEDULERS
from yardsticks.clusters import PROFILES, hard_clusters, of_profile, small_hard_clusters
from yardsticks.random_clusters import random_clusters
from yardsticks.scenarios import Scenario, bound_of, make_workload, scenarios, tails

from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.simulation.virtual_cluster import simulate

CLIPS = {"a": 2_000, "b": 2_000, "c": 2_000, "d": 100_000}


def goal(clips: int) -> float:
    """The ratio that no cluster should exceed."""
    return 1.05 if clips >= 100 else 1.15


def rows_for(scenario: Scenario, cluster: str) -> list[dict[str, Any]]:
    """One row per policy."""
    bound = bound_of(scenario)
    rows = []
    for name, make_scheduler in SCHEDULERS.items():
        scheduler = make_scheduler(scenario.workload, scenario.config)
        makespan = simulate(scenario.workload, scenario.devices, scheduler=scheduler).makespan_s
        rows.append(
            {
                "cluster": cluster,
                "scenario": scenario.name,
                "policy": name,
                "clips": scenario.workload.clips,
                "makespan": round(makespan, 1),
                "bound": round(bound, 1),
                "ratio": round(makespan / bound, 4),
            }
        )
    return rows


def all_scenarios(*, quick: bool) -> Iterator[tuple[str, Scenario]]:
    """(cluster, scenario): every cluster profile, disturbances of cluster b, then clusters on which placement is hard."""
    shrink = 10 if quick else 1
    for cluster, clips in CLIPS.items():
        scenario = Scenario(name="as it is", workload=make_workload(clips // shrink), devices=of_profile(cluster))
        yield cluster, scenario
    profile = read_profile(PROFILES / "b.yaml")
    for scenario in scenarios(profile, CLIPS["b"] // shrink) + tails(profile):
        yield "b", scenario
    for scenario in small_hard_clusters() if quick else hard_clusters():
        yield "made up", scenario


def measure_all(found: Sequence[tuple[str, Scenario]]) -> Iterator[dict[str, Any]]:
    """The rows of (cluster, scenario), which are simulated on all cores and come in their order."""
    clusters, of_clusters = zip(*found, strict=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for rows in pool.map(rows_for, of_clusters, clusters):
            yield from rows


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of the production policy: mean and worst ratio for each kind of cluster, and what is over the goal."""
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    mine = [row for row in rows if row["policy"] == "production"]
    for row in mine:
        ratios[row["cluster"]].append(row["ratio"])
    for kind, found in ratios.items():
        yield f"{kind:22} {len(found):3} clusters: mean {sum(found) / len(found):.3f}, worst {max(found):.3f}"
    over = [row for row in mine if row["ratio"] > goal(row["clips"])]
    yield f"over the goal (1.15, and 1.05 from 100 clips on): {len(over)} of {len(mine)}"
    yield from (f"  {row['scenario']}: {row['ratio']:.3f}" for row in over)


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="a list of rows instead of a table")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a tenth of the clips, and a few of the made-up clusters")
    which.add_argument("--random", type=int, metavar="CLUSTERS", help="so many clusters drawn at random, and a summary")
    parser.add_argument("--seed", type=int, default=0, help="of the clusters drawn at random (default: 0)")
    options = parser.parse_args()
    if options.random is not None and options.random < 1:
        parser.error(f"--random is {options.random}; expected 1 or more")
    random_ones = options.random is not None
    found = random_clusters(options.random, options.seed) if random_ones else all_scenarios(quick=options.quick)
    started_s, rows = time.monotonic(), []
    for row in measure_all(list(found)):
        rows.append(row)
        if not options.json:
            name = f"{row['cluster']}  {row['scenario']}"
            print(
                f"{name:75} {row['policy']:16} {row['clips']:>7} {row['makespan']:>10} {row['bound']:>10} {row['ratio']}"
            )
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
    elif random_ones:
        print(*summary(rows), sep="\n")
    print(f"{time.monotonic() - started_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
