"""All benchmarks in one run: `make bench`. Ratios only mean something; each part says what it compares.

1. scoring.py: scored pairs a second against a straightforward loop; tokens computed over a perfect prefix cache.
2. The real recipe: share of an iteration spent outside model forward, backward and optimiser steps.
3. The planted target: milliseconds of the framework per episode.
4. Time from `rlprompt train` to the end of the first iteration; `import rlprompt`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # experiments/ holds a folder named rlprompt, which is not the package

from experiments.report import machine
from rlprompt.config import load_config, parse_config
from rlprompt.runs import load_run, train

RECIPE = ROOT / "experiments" / "rlprompt" / "quickstart.yaml"


def real_recipe(folder: str, iterations: int = 6) -> None:
    """Trains the quickstart's recipe for a few iterations and reads where the time went."""
    started = time.perf_counter()
    config = load_config(RECIPE, [f"algorithm.iterations={iterations}", f"run.dir={folder}", "selection.top=1"])
    result = train(config, progress=False)
    times = [event["time"] for event in load_run(result.folder).events() if "iteration_s" in event.get("time", {})]
    outside = statistics.median(entry["outside_models"] for entry in times[1:])
    print(f"real recipe, {len(times)} iterations in {time.perf_counter() - started:.0f} s")
    print(f"  outside model forward, backward and optimiser steps: {outside:.1%} of an iteration (median; aim 10 %)")
    median = statistics.median(entry["iteration_s"] for entry in times[1:])
    print(f"  an iteration: {median:.2f} s (median after the first)")


def planted(folder: str, num_envs: int = 64, iterations: int = 20) -> None:
    """Trains on the planted target, where model time is small, and divides by the episodes."""
    config = parse_config(
        {
            "name": "bench-planted",
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {"name": "planted:separable"},
            "policy": {"kind": "categorical", "model": "planted-50"},
            "env": {"prompt_length": 3, "num_envs": num_envs, "action": "sequence"},
            "stabilisers": [{"name": "leave-one-out"}],
            "algorithm": {"name": "reinforce", "lr": 0.01, "iterations": iterations},
            "run": {"dir": folder, "tensorboard": False},
        }
    )
    result = train(config, progress=False)
    times = [event["time"] for event in load_run(result.folder).events() if "iteration_s" in event.get("time", {})]
    per_episode = statistics.median(entry["iteration_s"] for entry in times[2:]) / num_envs * 1000
    print(f"planted target, {num_envs} episodes of 3 tokens an iteration: {per_episode:.2f} ms per episode (median)")


def start_up(folder: str) -> None:
    """Times the command line from its start to the end of the first iteration, and the bare import."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "rlprompt", "train", str(RECIPE), "algorithm.iterations=1", "selection.top=1"]
    subprocess.run([*command, f"run.dir={folder}", "--quiet"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    print(f"rlprompt train to the end of iteration 1 and the choice on dev: {time.perf_counter() - started:.1f} s")
    seconds = [_import_seconds() for _ in range(5)]
    print(f"import rlprompt: {statistics.median(seconds) * 1000:.0f} ms over a bare interpreter (aim 100 ms)")


def _import_seconds() -> float:
    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        return time.perf_counter() - started

    return run("import rlprompt") - run("pass")


def main() -> int:
    """Runs all parts; returns the exit code."""
    print(machine(), flush=True)
    code = subprocess.run([sys.executable, str(ROOT / "experiments/benchmarks/scoring.py"), *sys.argv[1:]], check=False)
    with tempfile.TemporaryDirectory() as folder:
        real_recipe(folder)
        planted(folder)
        start_up(folder)
    return code.returncode


if __name__ == "__main__":
    raise SystemExit(main())
