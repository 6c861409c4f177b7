"""Run by the test of calls in flight: one session of the tiny run, its target behind HTTP; resumes what is there.

Usage: in_flight_driver.py FOLDER URL CONCURRENCY
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import tiny_algorithm

from rlprompt.runs import train

STUB = types.ModuleType("rlprompt.policies")
STUB.build_policy = tiny_algorithm.build_policy  # type: ignore[attr-defined]
sys.modules["rlprompt.policies"] = STUB


def main() -> None:
    folder, url, concurrency = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kwargs = f"base_url: '{url}', choices_by: parsed, concurrency: {concurrency}, max_attempts: 1"
    price = "price: {prompt_usd_per_token: 1.0e-6, completion_usd_per_token: 2.0e-6}"
    target = f"target={{name: 'openai:mock', kwargs: {{{kwargs}, {price}}}}}"
    config = tiny_algorithm.make_config(folder, [target, "reward=[{name: accuracy}]"])
    before = sorted((folder / "tiny").glob("*"))
    train(
        config, resume=before[0] if before else None, progress=False, search_path=Path(tiny_algorithm.__file__).parent
    )


if __name__ == "__main__":
    main()
