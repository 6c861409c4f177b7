"""`kill -9` at random moments of a PPO run whose target is behind HTTP: what is lost, and what is paid twice.

Command: python experiments/reliability/kills.py [--kills 50] [--runners 0] [--seed 0]
One run is left alone; another one is killed at random moments (while it starts, writes prompts, waits for the target,
learns, or writes a checkpoint) and resumed each time by `rlprompt train --resume`. The server counts every call and
never deduplicates. Rewrites its part of experiments/README.md; exits 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.reliability.server import PlantedServer
from experiments.report import machine, publish, read_json, write_json
from rlprompt.errors import RunError
from rlprompt.runs import load_run
from rlprompt.runs.events import comparable
from rlprompt.runs.folder import RunFolder
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "reliability"
CONCURRENCY = 16
LENGTH, VOCABULARY = 4, 50
LATENCY_S = 0.05


def config(folder: Path, url: str, iterations: int, runners: int) -> Json:
    """Returns the run: 8 prompts of 4 tokens an iteration, each on 4 train examples, all over HTTP."""
    target = {"base_url": url, "choices_by": "top-logprobs", "concurrency": CONCURRENCY}
    target["price"] = {"prompt_usd_per_token": 1.0e-6, "completion_usd_per_token": 2.0e-6}
    return {
        "name": "killed",
        "seed": 0,
        "task": {"name": "planted", "shots": 16, "dev_shots": 8},
        "target": {"name": "openai:planted", "kwargs": target},
        "policy": {"kind": "categorical", "model": f"planted-{VOCABULARY}"},
        "env": {"prompt_length": LENGTH, "num_envs": 8, "action": "sequence", "examples_per_step": 4},
        "stabilisers": [{"name": "leave-one-out"}],
        "algorithm": {"name": "ppo", "lr": 0.05, "iterations": iterations},
        "ray": {"num_env_runners": runners},
        "run": {"dir": str(folder), "checkpoint_every": 5, "tensorboard": False},
    }


def begin(path: Path, runs: Path) -> subprocess.Popen[bytes]:
    """Starts a session: a new run, or the one that is there."""
    before = sorted((runs / "killed").glob("*"))
    resume = ["--resume", str(before[0])] if before else []
    command = [sys.executable, "-m", "rlprompt", "train", str(path), *resume]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(path: Path, runs: Path) -> Path:
    """Lets a session end by itself; returns the run's folder."""
    code = begin(path, runs).wait()
    if code:
        raise RunError(f"a session that nobody killed ended with {code}; see {runs}")
    (folder,) = (runs / "killed").iterdir()
    return folder


def curve(folder: Path) -> list[Json]:
    """Returns the events without what differs between two equal runs."""
    return [comparable(event) for event in load_run(folder).events()]


def survive(path: Path, runs: Path, options: argparse.Namespace, console: Console) -> int:
    """Kills sessions at random moments until as many as wanted are dead; returns how many were."""
    killed, kills, rng = 0, options.kills, random.Random(options.seed)
    while killed < kills:
        process, moment = begin(path, runs), rng.uniform(options.earliest, options.latest)
        try:
            process.wait(moment)
            console.print(f"the run ended before kill {killed + 1}; raise --iterations for more of them")
            return killed
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            console.print(f"kill {killed}/{kills} after {moment:.1f} s")
    return killed


def measure(options: argparse.Namespace, console: Console) -> Json:
    """Makes both runs and counts."""
    started = time.perf_counter()
    planted = {"length": LENGTH, "vocabulary": VOCABULARY}
    with tempfile.TemporaryDirectory() as temporary, PlantedServer(latency_s=LATENCY_S, **planted) as server:
        alone, killed = Path(temporary) / "alone", Path(temporary) / "killed"
        paths = {}
        for runs in (alone, killed):
            paths[runs] = runs.with_suffix(".yaml")
            settings = config(runs, server.url, options.iterations, options.runners)
            paths[runs].write_text(yaml.safe_dump(settings))
        console.print("the run that is left alone ...")
        begun = time.perf_counter()
        expected = finish(paths[alone], alone)
        console.print(f"{time.perf_counter() - begun:.0f} s")
        once = dict(server.calls)
        server.calls.clear()
        kills = survive(paths[killed], killed, options, console)
        found = finish(paths[killed], killed)
        ledger = read_json(RunFolder(found).result)["ledger"]
        sent = sum(server.calls.values())
        return {
            "kills": kills,
            "runners": options.runners,
            "seed": options.seed,
            "iterations": options.iterations,
            "same_curve": curve(found) == curve(expected),
            "questions": len(once),
            "lost": len(once.keys() - server.calls.keys()),
            "sent": sent,
            "repeated": sent - len(server.calls),
            "unknown": ledger["unknown"],
            "bound": kills * CONCURRENCY,
            "paid": ledger["paid"]["calls"],
            "seconds": round(time.perf_counter() - started, 1),
            "machine": machine(),
        }


def is_sound(found: Json) -> bool:
    """Whether nothing was lost, and nothing paid twice but what was in flight at a kill."""
    in_bounds = found["repeated"] <= found["unknown"] <= found["bound"]
    return bool(found["same_curve"]) and found["lost"] == 0 and in_bounds and found["sent"] <= found["paid"]


def table(folder: Path) -> str:
    """Returns the Markdown table of all results in a folder."""
    lines = [
        "| env runners | kills | same curve | questions | lost | sent | sent twice | unknown | bound | minutes |",
        "|---" * 10 + "|",
    ]
    for path in sorted(folder.glob("kills-*.json")):
        found: dict[str, Any] = read_json(path)
        values = [found[name] for name in ("questions", "lost", "sent", "repeated", "unknown", "bound")]
        same = "yes" if found["same_curve"] else "NO"
        minutes = f"{found['seconds'] / 60:.0f}"
        row = [found["runners"], found["kills"], same, *(f"{value:,}" for value in values), minutes]
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", f"{found['iterations']} iterations; seed {found['seed']}; {found['machine']}."]
    return "\n".join(lines)


def main() -> int:
    """Measures and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runners", type=int, default=0, help="env runners; 0 for the run's own process")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--earliest", type=float, default=4.0, help="seconds of a session before it is killed")
    parser.add_argument("--latest", type=float, default=16.0, help="after so many seconds it is dead")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()
    sound: list[bool] = []

    def make(console: Console) -> tuple[str, str] | None:
        found = measure(options, console)
        sound.append(is_sound(found))
        write_json(options.results / f"kills-{options.runners}.json", found)
        return "kills", table(options.results)

    return publish(make, options.readme) or (0 if all(sound) else 1)


if __name__ == "__main__":
    raise SystemExit(main())
