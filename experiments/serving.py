"""`rlprompt serve` as a process, for what measures it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlprompt.config import PolicyConfig
from rlprompt.policies import PromptPolicy, build_policy
from rlprompt.served import Served


@contextmanager
def serving(
    upstream: str, served: Served, policy: PromptPolicy | None = None, *settings: str, keys: str = ""
) -> Iterator[tuple[str, int]]:
    """Serves a policy until the end; yields the server's address, without /v1, and the number of its process.

    Args:
        upstream: the address of the LLM, with /v1.
        served: how texts are rewritten.
        policy: who writes; not needed for a fixed prompt.
        settings: of the server, as on the command line.
        keys: of clients, separated by commas.
    """
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
    if policy is None:  # a folder needs one, which a fixed prompt never loads
        policy = build_policy(PolicyConfig(kind="categorical", model="planted-50"), prompt_length=3, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "best", served.model_dump(mode="json"))
        command = [sys.executable, "-m", "rlprompt", "serve", folder, "--upstream", upstream, "--port", "0", *settings]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment | {"RLPROMPT_API_KEY": keys}
        ) as process:
            if process.stderr is None:
                raise RuntimeError("the server has no output")
            line = next((line for line in process.stderr if " at http" in line), None)
            if line is None:
                raise RuntimeError("the server did not start")
            # What it says later must be read, or it would wait for a reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            try:
                yield line.split(" at ")[1].split("/v1")[0], process.pid
            finally:
                process.terminate()


@contextmanager
def server_in(script: Path, *arguments: str) -> Iterator[str]:
    """Runs a script that prints the port it serves on; yields its address, with /v1."""
    with subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()
