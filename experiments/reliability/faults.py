"""Faults at random moments of a PPO run with two env runners whose target is behind HTTP: what is lost or paid twice.

Command: python experiments/reliability/faults.py [--times 10] [--faults runner mailbox ...] [--seed 0]
One run is left alone; each of the others meets one fault: an env runner, the mailbox, a node or the cluster's head is
killed, the object store is filled, the API refuses for some seconds, or the driver is killed with `kill -9`. A run that
a fault ends is resumed, where the head was lost on a new cluster. Results that are there are not measured again.
Rewrites its part of experiments/README.md; exits 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.reliability.fault_session import iterations_of, wait_for
from experiments.reliability.kills import LATENCY_S, LENGTH, VOCABULARY, config, curve
from experiments.reliability.server import PlantedServer
from experiments.report import machine, publish, read_json, write_json
from rlprompt.errors import RunError
from rlprompt.runs import load_run
from rlprompt.runs.folder import RunFolder
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "faults"
FAULTS = {
    "runner": "env runner killed",
    "mailbox": "mailbox killed",
    "node": "node killed",
    "head": "head killed, started anew",
    "store": "object store full",
    "api": "API down for seconds",
    "driver": "driver killed, resumed",
}
RUNNERS = 2
MOST_SESSIONS = 4
"""Of one run; more would mean that it does not get ahead."""
MOST_ATTEMPTS = 8
"""Of one call: waits of 0.5, 1, 2, ... seconds outlast the outages."""
OUTAGE_S = (1.0, 5.0)


@dataclass(frozen=True)
class Calm:
    """The run that is left alone."""

    folder: Path
    questions: frozenset[str]
    seconds_each: float
    """Of an iteration."""


@dataclass(frozen=True)
class Broken:
    """A run that met a fault."""

    folder: Path
    codes: list[int]
    """Of its sessions; a killed one has -9."""
    reasons: list[str]
    """What it said where it ended before its end, one line each."""
    is_injected: bool


def write_config(runs: Path, url: str, iterations: int) -> Path:
    """Writes the configuration of one run beside its folder."""
    settings = config(runs, url, iterations, RUNNERS)
    settings["target"]["kwargs"]["max_attempts"] = MOST_ATTEMPTS
    path = runs.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def begin(plan: Json, log: Path) -> subprocess.Popen[bytes]:
    """Starts a session."""
    with log.open("wb") as errors:
        command = [sys.executable, str(HERE / "fault_session.py"), json.dumps(plan)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)


def reason_in(log: Path) -> str:
    """Returns the line with which a session says why it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    return said[-1] if said else (lines[-1] if lines else "")


def left_alone(root: Path, server: PlantedServer, iterations: int) -> Calm:
    """Makes the run without a fault; raises RunError where it fails."""
    runs = root / "calm"
    path = write_config(runs, server.url, iterations)
    plan = {"fault": "none", "runs": str(runs), "config": str(path), "injected": str(root / "calm.injected")}
    if begin(plan, root / "calm.log").wait():
        raise RunError(f"the run without a fault failed: {reason_in(root / 'calm.log')}")
    (folder,) = (runs / "killed").iterdir()
    events = [event for event in load_run(folder).events() if event["event"] == "iteration"]
    seconds = sum(event["time"]["iteration_s"] for event in events) / len(events)
    return Calm(folder, frozenset(server.calls), seconds)


def from_outside(fault: str, process: subprocess.Popen[bytes], plan: Json, server: PlantedServer) -> None:
    """Injects the faults that no session can inject into itself; ends when it is done or the session is over."""
    runs, rng = Path(plan["runs"]), random.Random(plan["seed"])
    waiting = threading.Thread(target=wait_for, args=(runs, plan["iteration"], plan["delay_s"]), daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.01)
        if process.poll() is not None:
            return
    if fault == "driver":
        os.kill(process.pid, signal.SIGKILL)
    else:
        server.refuse(rng.uniform(*OUTAGE_S))
    Path(plan["injected"]).write_text(fault, encoding="utf-8")


def break_once(plan: Json, root: Path, server: PlantedServer) -> Broken:
    """Makes one run with its fault, in as many sessions as that takes."""
    codes: list[int] = []
    reasons: list[str] = []
    while not codes or (codes[-1] and len(codes) < MOST_SESSIONS):
        log = root / f"{Path(plan['runs']).name}-{len(codes)}.log"
        process = begin(plan, log)
        if plan["fault"] in ("driver", "api") and not codes:
            from_outside(plan["fault"], process, plan, server)
        codes.append(process.wait())
        if codes[-1] > 0:
            reasons.append(reason_in(log))
    (folder,) = (Path(plan["runs"]) / "killed").iterdir()
    return Broken(folder, codes, reasons, Path(plan["injected"]).exists())


def same_curve(one: Path, other: Path) -> bool:
    """Whether two runs have the same events, but for what follows from their servers' addresses."""
    first, second = ([{**event, "config_hash": None} for event in curve(folder)] for folder in (one, other))
    return first == second


def weights(folder: Path) -> dict[str, bytes]:
    """Returns the policy that a run left behind, bytes by file name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "best").glob("*.safetensors"))}


def measure(fault: str, index: int, options: argparse.Namespace, calm: Calm, root: Path) -> Json:
    """Injects one fault into a run of its own and counts."""
    started = time.perf_counter()
    rng = random.Random(f"{options.seed}/{fault}/{index}")
    runs = root / f"{fault}-{index}"
    plan = {
        "fault": fault,
        "runs": str(runs),
        "injected": f"{runs}.injected",
        "iteration": rng.randint(1, max(1, options.iterations * 3 // 4)),
        "delay_s": rng.uniform(0.0, calm.seconds_each),
        "seed": rng.randrange(2**31),
    }
    with PlantedServer(latency_s=LATENCY_S, length=LENGTH, vocabulary=VOCABULARY) as server:
        plan["config"] = str(write_config(runs, server.url, options.iterations))
        broken = break_once(plan, root, server)
        sent = dict(server.calls)
    ended = broken.codes[-1] == 0
    ledger = read_json(RunFolder(broken.folder).result)["ledger"] if ended else {"unknown": 0}
    return {
        "fault": fault,
        "index": index,
        "iteration": plan["iteration"],
        "delay_s": round(plan["delay_s"], 2),
        "injected": broken.is_injected,
        "codes": broken.codes,
        "reasons": broken.reasons,
        "lost": len(calm.questions - sent.keys()),
        "repeated": sum(sent.values()) - len(sent),
        "unknown": ledger["unknown"],
        "same_curve": ended and same_curve(broken.folder, calm.folder),
        "same_weights": ended and weights(broken.folder) == weights(calm.folder) != {},
        "iterations": iterations_of(runs),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def is_sound(found: Json) -> bool:
    """Whether the fault was met, nothing was lost, and nothing paid twice but what was in flight at a kill."""
    same = found["same_curve"] and found["same_weights"]
    told = all(reason for reason in found["reasons"])
    in_flight = found["unknown"] if found["fault"] in ("driver", "head") else 0
    return bool(found["injected"] and same and told and found["lost"] == 0 and found["repeated"] <= in_flight)


def table(folder: Path) -> str:
    """Returns the Markdown table of all results in a folder."""
    lines = [
        "| fault | injected | went on | stopped, resumed | lost | sent twice | in flight | same weights | minutes |",
        "|---" * 9 + "|",
    ]
    last: Json = {}
    for fault, name in FAULTS.items():
        found: list[dict[str, Any]] = [read_json(path) for path in sorted(folder.glob(f"{fault}-*.json"))]
        if not found:
            continue
        last = found[-1]
        went_on = sum(result["codes"] == [0] for result in found)
        sums = [sum(result[key] for result in found) for key in ("lost", "repeated", "unknown")]
        same = sum(bool(result["same_weights"] and result["same_curve"]) for result in found)
        injected = sum(bool(result["injected"]) for result in found)
        minutes = sum(result["seconds"] for result in found) / 60
        row = [name, injected, went_on, len(found) - went_on, *sums, f"{same} of {len(found)}", f"{minutes:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", f"{last['iterations']} iterations, {RUNNERS} env runners; {last['machine']}."]
    return "\n".join(lines)


def soak(options: argparse.Namespace, console: Console) -> list[Json]:
    """Measures what is missing; returns all results that were asked for."""
    wanted = [(fault, index) for index in range(options.times) for fault in options.faults]
    paths = {key: options.results / f"{key[0]}-{key[1]}.json" for key in wanted}
    missing = [key for key in wanted if not paths[key].exists()]
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        root = Path(temporary)
        calm = None
        for fault, index in missing:
            if calm is None:
                console.print("the run that is left alone ...")
                with PlantedServer(latency_s=LATENCY_S, length=LENGTH, vocabulary=VOCABULARY) as server:
                    calm = left_alone(root, server, options.iterations)
            found = measure(fault, index, options, calm, root)
            write_json(paths[fault, index], found)
            said = "sound" if is_sound(found) else "NOT SOUND"
            console.print(f"{FAULTS[fault]} {index + 1}/{options.times}: {said}, {found['seconds']:.0f} s")
    return [read_json(path) for path in paths.values()]


def main() -> int:
    """Measures and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="how often each fault is injected")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    options = parser.parse_args()
    sound: list[bool] = []

    def make(console: Console) -> tuple[str, str] | None:
        sound.extend(map(is_sound, soak(options, console)))
        return "faults", table(options.results)

    return publish(make, options.readme) or (0 if all(sound) else 1)


if __name__ == "__main__":
    raise SystemExit(main())
