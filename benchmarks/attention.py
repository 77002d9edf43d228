"""Speed and accuracy of every attention backend at each site of the model.

Benchmarks the backends on the shapes of a clip against a float32 reference, as `--attention auto` does, without its cache.

    python benchmarks/attention.py                     # the published model's shapes; on a CPU at most 1,024 tokens
    python benchmarks/attention.py --device cuda --model-name 960x960_10s --allow-inexact
    python benchmarks/attention.py --json > attention.json
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ovi.attention import AttentionShape, Site
from ovi.attention.autotune import Choice, TrialCache, choose
from ovi.attention.target import AttentionTarget
from ovi_ray.devices.attention import model_shapes
from ovi_ray.devices.doctor import CPU_TOKENS


def measure(arguments: argparse.Namespace) -> dict[Site, Choice]:
    target = AttentionTarget.of(torch.device(arguments.device), getattr(torch, arguments.dtype))
    shapes = model_shapes(arguments.ckpt_dir, arguments.model_name)
    tokens = arguments.tokens or (CPU_TOKENS if target.vendor == "cpu" else None)
    if tokens:
        shapes = {site: limit(shape, tokens) for site, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        cache = TrialCache(Path(folder) / "attention.json")
        return choose(target, shapes, allow_inexact=arguments.allow_inexact, cache=cache)


def limit(shape: AttentionShape, tokens: int) -> AttentionShape:
    lengths = {name: min(getattr(shape, name), tokens) for name in ("query_length", "key_length")}
    return dataclasses.replace(shape, **lengths)


def rows(choices: dict[Site, Choice]) -> list[dict[str, object]]:
    return [
        {
            "site": site,
            **dataclasses.asdict(choice.shape),
            **dataclasses.asdict(trial),
            "chosen": trial.backend is choice.chosen,
        }
        for site, choice in choices.items()
        for trial in choice.trials
    ]


def show(choices: dict[Site, Choice]) -> None:
    table = Table("site", "shape", "backend", "ms", "error", "")
    for site, choice in choices.items():
        for trial in choice.trials:
            time = "" if trial.seconds is None else f"{1e3 * trial.seconds:.3g}"
            error = "" if trial.error is None else f"{trial.error:.1e}"
            mark = "chosen" if trial.backend is choice.chosen else trial.reason
            table.add_row(site, str(choice.shape), trial.backend, time, error, mark)
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--model-name", default="720x720_5s")
    parser.add_argument("--ckpt-dir", type=Path, default=Path("ckpts"), help="checkpoint folder that sets the sizes")
    parser.add_argument("--tokens", type=int, help=f"limit of queries and keys; default on a CPU {CPU_TOKENS}")
    parser.add_argument("--allow-inexact", action="store_true", help="also try backends that quantize")
    parser.add_argument("--json", action="store_true", help="print a list of trials instead of a table")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    choices = measure(arguments)
    if arguments.json:
        print(json.dumps(rows(choices), indent=1))
    else:
        show(choices)


if __name__ == "__main__":
    main()
