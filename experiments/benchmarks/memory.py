"""Peak memory of training a rewriter of 135M parameters on CPU, target included (aim: 6 GB).

Command: python experiments/benchmarks/memory.py
Each line is a process of its own that trains two iterations of experiments/rlprompt/prewrite.yaml; the peak is the
largest resident set of that process, as the kernel counts it (policy, reference, frozen target, optimiser, Python).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # experiments/ holds a folder named rlprompt, which is not the package

from experiments.report import machine

RECIPE = ROOT / "experiments" / "rlprompt" / "prewrite.yaml"
GRPO = ["algorithm.name=grpo", "stabilisers=[]", "reward=[{name: accuracy}]"]
CASES = {
    "PPO, LoRA rank 8": [],
    "GRPO, LoRA rank 8": GRPO,
    "PPO, all weights": ["policy.kwargs={lora: null}"],
}
_CHILD = """
import json, resource, sys
from rlprompt.config import load_config
from rlprompt.runs import train
train(load_config(sys.argv[1], sys.argv[2:]), progress=False)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def peak_bytes(overrides: list[str]) -> int:
    """Trains two iterations in a process of its own and returns its largest resident set (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        common = ["algorithm.iterations=2", "selection.top=1", f"run.dir={folder}", "run.tensorboard=false"]
        command = [sys.executable, "-c", _CHILD, str(RECIPE), *common, *overrides]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    kilobytes: int = json.loads(done.stdout.splitlines()[-1])
    return 1024 * kilobytes


def main() -> int:
    """Prints one line for each case."""
    print(machine())
    for name, overrides in CASES.items():
        print(f"{name}: {peak_bytes(overrides) / 1e9:.2f} GB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
