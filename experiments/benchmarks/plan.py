"""Plan past this machine: a simulation of up to 1,000 env runners from service times that are measured here first.

Command: python experiments/benchmarks/plan.py [--policies tiny smollm2] [--usd-per-gpu-hour PRICE] [...]
Measures, on the machine on which it runs, what an iteration consists of (writing, letters, calls over HTTP to a server
of fixed latency, rewards, weights, update), simulates a synchronous iteration with W env runners against a target that
works on C calls at a time, names what takes most of it, and holds the simulation against real iterations with one and
two env runners. Then sizes and cost of larger models, from their shapes and stated assumptions. Rewrites its part of
experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

# The checkout replaces this script's folder on the path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.benchmarks.simulation import EPOCHS, STAGES, Costs, Measured, Outcome, Plan, Setting, simulate
from experiments.benchmarks.sizes import (
    EIGHT,
    ONE,
    SEVENTY,
    Gpu,
    Work,
    asking_hours,
    core_hours,
    gpus,
    learning_hours,
    serving_bytes,
    training_bytes,
    writing_hours,
)
from experiments.report import machine, publish, write_json
from rlprompt.seeding import generator
from rlprompt.types import Json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "planning"
NAMES = {"tiny": "a table of 4 x 50 logits", "smollm2": "SmolLM2-135M with LoRA of rank 8"}
RUNS = 5
"""Simulated iterations, of which the median is shown."""
MILLION = 1_000_000


def predicted(costs: Costs, plan: Plan) -> Outcome:
    """Returns the simulated iteration whose speed is the median of several."""
    found = [simulate(costs, plan, generator(0, "plan", plan.runners, plan.concurrency, run)) for run in range(RUNS)]
    return sorted(found, key=lambda outcome: outcome.samples_per_s)[RUNS // 2]


def planned(options: argparse.Namespace, runners: int, concurrency: int) -> Plan:
    """Returns a plan of the command line."""
    return Plan(
        runners,
        options.share,
        options.examples,
        concurrency,
        options.latency,
        options.latency_cv,
        options.runners_per_node,
        options.gbit * 1e9 / 8,
    )


def costs_table(found: dict[str, Measured]) -> str:
    """Returns what was measured as Markdown."""
    rows = [
        ("an env runner writes its share", "write_s"),
        ("what else it does with it", "play_s"),
        ("it unpacks the weights", "get_s"),
        ("the weights are published", "put_s"),
        ("a letter and its answer, driver and mailbox", "message_s"),
        ("the episodes of a share arrive", "fetch_s"),
        ("a call over HTTP, the driver's CPU", "call_s"),
        ("a scored pair besides", "score_s"),
        ("the update, per prompt", "learn_s"),
        ("what else an iteration takes", "rest_s"),
    ]
    lines = ["| milliseconds | " + " | ".join(map(str, found)) + " |", "|---" * (1 + len(found)) + "|"]
    for text, name in rows:
        cells = (f"{1000 * getattr(measured.costs, name):.3g}" for measured in found.values())
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    sizes = (f"{measured.costs.weights_bytes / 1e6:.3g} MB" for measured in found.values())
    return "\n".join([*lines, "| weights that are sent | " + " | ".join(sizes) + " |"])


def speed_table(costs: Costs, options: argparse.Namespace) -> str:
    """Returns predicted samples a second by W and C, each with what takes most of the iteration, as Markdown."""
    head = " | ".join(f"C = {concurrency:,}" for concurrency in options.concurrency)
    lines = [f"| env runners W | {head} |", "|---" * (1 + len(options.concurrency)) + "|"]
    for runners in options.runners:
        found = [predicted(costs, planned(options, runners, size)) for size in options.concurrency]
        cells = (f"{outcome.samples_per_s:.3g}, {outcome.bottleneck}" for outcome in found)
        lines.append(f"| {runners:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stage_table(found: dict[str, Measured], options: argparse.Namespace) -> str:
    """Returns where an iteration's time goes with the most env runners and calls, as Markdown."""
    plan = planned(options, max(options.runners), max(options.concurrency))
    outcomes = {name: predicted(measured.costs, plan) for name, measured in found.items()}
    head = f"part of an iteration, W = {plan.runners:,}, C = {plan.concurrency:,}"
    lines = [f"| {head} | " + " | ".join(outcomes) + " |", "|---" * (1 + len(outcomes)) + "|"]
    for stage in STAGES:
        cells = (f"{100 * outcome.share(stage):.1f} %" for outcome in outcomes.values())
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    seconds = (f"{sum(outcome.stages.values()):.3g} s" for outcome in outcomes.values())
    return "\n".join([*lines, "| an iteration | " + " | ".join(seconds) + " |"])


def validation(found: dict[str, Measured], options: argparse.Namespace, url: str, console: Console) -> list[Json]:
    """Returns measured and simulated samples a second at sizes that this machine can run."""
    from experiments.benchmarks.service_times import throughput

    rows: list[Json] = []
    setting = _setting(options)
    for name, measured in found.items():
        for runners in options.validate:
            plan = Plan(runners, options.share, options.examples, setting.concurrency, setting.latency_s)
            simulated = predicted(measured.costs, plan).samples_per_s
            real = throughput(name, url, setting, runners)
            rows.append({"policy": name, "runners": runners, "simulated": simulated, "measured": real})
            console.print(f"{name}, {runners} env runners: {real:.3g}/s measured, {simulated:.3g}/s simulated")
    return rows


def validation_table(rows: Sequence[Json]) -> str:
    """Returns the validation as Markdown."""
    lines = ["| policy | env runners | simulated, samples/s | measured | simulated over measured |", "|---" * 5 + "|"]
    for row in rows:
        ratio = row["simulated"] / row["measured"]
        lines.append(
            f"| {row['policy']} | {row['runners']} | {row['simulated']:.3g} | {row['measured']:.3g} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def sizes_table(core_flops: float, options: argparse.Namespace) -> str:
    """Returns memory, hours and perhaps cost of a million samples with larger models, as Markdown.

    Args:
        core_flops: what a core of this machine reaches while it writes.
        options: the command line's.
    """
    work = Work(options.context, options.written, options.examples, options.question, options.answer, EPOCHS)
    gpu = Gpu(options.flops, options.gpu_memory * 1e9, options.reading, options.writing_utilisation, options.learning)
    rows: list[tuple[str, float, float, list[float]]] = []
    for shape in (ONE, EIGHT):
        batch = options.share * work.tokens
        hours = [writing_hours(shape, work, gpu), learning_hours(shape, work, gpu)]
        rows.append(
            (
                f"{shape.name} rewriter",
                training_bytes(shape, options.rank, batch),
                core_hours(shape, work, core_flops),
                hours,
            )
        )
    calls = options.target_concurrency * (work.question + work.answer)
    rows.append((f"{SEVENTY.name} target", serving_bytes(SEVENTY, calls), 0.0, [asking_hours(SEVENTY, work, gpu)]))
    price = options.usd_per_gpu_hour
    head = ["a million samples", "memory, GB", f"GPUs of {options.gpu_memory:g} GB", "core-hours of writing"]
    head += ["GPU-hours of writing or answering", "GPU-hours of learning"] + (["USD"] if price is not None else [])
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, size, cores, hours in rows:
        cells = [name, f"{size / 1e9:.3g}", str(gpus(size, gpu)), _count(MILLION * cores) if cores else ""]
        cells += [_count(MILLION * value) for value in hours] + [""] * (2 - len(hours))
        cells += [_count(MILLION * sum(hours) * price)] if price is not None else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(value: float) -> str:
    """A number of hours or dollars to three digits.

    >>> _count(1234567.0), _count(0.1234)
    ('1,230,000', '0.123')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def assumptions(core_flops: float, options: argparse.Namespace) -> str:
    """Returns in words what stands behind the table of sizes."""
    return (
        f"Assumed: {options.context} tokens of context and {options.written} written tokens a sample, "
        f"{options.examples} questions of {options.question} tokens and answers of {options.answer}, LoRA of rank "
        f"{options.rank} on all linear layers (adapter, gradient and Adam's moments in float32), {EPOCHS} epochs, KV "
        f"caches of {options.share} rewrites and of {options.target_concurrency} calls, all weights in bfloat16; GPUs "
        f"of {options.flops:.3g} FLOP/s, of which {100 * options.reading:g} % are reached while reading, "
        f"{100 * options.writing_utilisation:g} % while writing and {100 * options.learning:g} % while learning. "
        "Activations, shared prefixes and idle time are left out; rewriters on GPUs are not built yet. Core-hours: at "
        f"the {core_flops / 1e9:.3g} GFLOP/s that one core of this machine reached with SmolLM2."
    )


def core_speed(measured: Measured, share: int) -> float:
    """Returns FLOP/s of the core that wrote a share: its context was read once, its tokens one by one."""
    tokens = measured.context + share * measured.written
    return 2 * measured.parameters * tokens / measured.costs.write_s


def page(found: dict[str, Measured], rows: Sequence[Json], options: argparse.Namespace) -> str:
    """Returns the whole section."""
    parts = [
        f"Measured here, {options.share} prompts a share, {options.examples} questions about each: {machine()}. tiny "
        f"is {NAMES['tiny']}, smollm2 is {NAMES['smollm2']}.",
        costs_table(found),
        "The simulation against real iterations here, where driver, env runners and server share the cores (target: "
        f"{1000 * options.measured_latency:g} ms, C = {options.measured_concurrency}):",
        validation_table(rows),
    ]
    network = (
        f"answers take {1000 * options.latency:g} ms in the mean, log-normal with a coefficient of variation of "
        f"{options.latency_cv:g}; {options.runners_per_node} env runners a node, {options.gbit:g} Gbit/s from the "
        "driver"
    )
    for name, measured in found.items():
        parts += [
            f"Predicted samples a second with {NAMES[name]}, and what takes most of an iteration; {network}:",
            speed_table(measured.costs, options),
            f"The same if its learner were {options.faster_learner:g} times as fast, as it might be on GPUs (assumed):",
            speed_table(replace(measured.costs, learn_s=measured.costs.learn_s / options.faster_learner), options),
        ]
    parts.append(stage_table(found, options))
    if "smollm2" in found:
        speed = core_speed(found["smollm2"], options.share)
        parts += ["Larger models:", sizes_table(speed, options), assumptions(speed, options)]
    return "\n\n".join(parts)


def _setting(options: argparse.Namespace) -> Setting:
    return Setting(
        options.share, options.examples, options.measured_concurrency, options.measured_latency, options.iterations
    )


def arguments() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--share", type=int, default=8, help="prompts of one env runner")
    parser.add_argument("--examples", type=int, default=16, help="questions about each prompt")
    parser.add_argument("--iterations", type=int, default=5, help="measured iterations; medians are taken")
    parser.add_argument("--measured-latency", type=float, default=0.05, help="seconds of the server's answers")
    parser.add_argument("--measured-concurrency", type=int, default=64)
    parser.add_argument("--validate", type=int, nargs="*", default=[1, 2], help="env runners of the real iterations")
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 8, 64, 512, 1000])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    parser.add_argument("--latency", type=float, default=0.5, help="assumed seconds of the target's answers, the mean")
    parser.add_argument("--latency-cv", type=float, default=0.5, help="their standard deviation over the mean")
    parser.add_argument("--gbit", type=float, default=10.0, help="assumed network of the driver, Gbit/s")
    parser.add_argument("--faster-learner", type=float, default=100.0, help="how much, in a second table")
    parser.add_argument("--runners-per-node", type=int, default=16)
    sizes = parser.add_argument_group("larger models, all of it assumed")
    sizes.add_argument("--context", type=int, default=200, help="tokens that a rewriter reads")
    sizes.add_argument("--written", type=int, default=64, help="tokens that it writes")
    sizes.add_argument("--question", type=int, default=300, help="tokens of a question to the target")
    sizes.add_argument("--answer", type=int, default=1, help="tokens of its answer")
    sizes.add_argument("--rank", type=int, default=16)
    sizes.add_argument("--target-concurrency", type=int, default=256)
    sizes.add_argument("--flops", type=float, default=1e15, help="peak of a GPU, bfloat16")
    sizes.add_argument("--gpu-memory", type=float, default=80, help="GB")
    sizes.add_argument("--reading", type=float, default=0.4, help="part of the peak while a context is read")
    sizes.add_argument("--writing-utilisation", type=float, default=0.05, help="while tokens are written one by one")
    sizes.add_argument("--learning", type=float, default=0.3, help="while the learner works")
    sizes.add_argument("--usd-per-gpu-hour", type=float, help="your price; without it only hours are shown")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="file with the table's section")
    return parser


def main() -> int:
    """Measures, simulates and rewrites the section; returns the exit code."""
    options = arguments().parse_args()

    def make(console: Console) -> tuple[str, str] | None:
        # Ray and torch only where something is measured.
        from experiments.benchmarks.service_times import call_seconds, server, service_times
        from rlprompt.cluster import RayConfig
        from rlprompt.ray_session import start_ray

        setting = _setting(options)
        start_ray(RayConfig(num_env_runners=max([2, *options.validate])))
        with server(options.measured_latency) as url, tempfile.TemporaryDirectory() as folder:
            call_s = call_seconds(url, setting, Path(folder))
            console.print(f"a call: {1000 * call_s:.2f} ms of the driver's CPU")
            found = {}
            for name in options.policies:
                found[name] = service_times(name, url, setting, call_s)
                console.print(f"{name}: {1000 * found[name].costs.write_s:.3g} ms to write a share")
            rows = validation(found, options, url, console)
        measured = {name: asdict(value) for name, value in found.items()}
        write_json(options.results / "plan.json", {"measured": measured, "validation": rows, "machine": machine()})
        return "planning", page(found, rows, options)

    return publish(make, options.readme)


if __name__ == "__main__":
    raise SystemExit(main())
