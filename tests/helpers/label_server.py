"""`rlprompt label` as a process of its own, which can be killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class LabelServer:
    """Starts the command; `url` is the address that it prints, with a slash at the end."""

    def __init__(self, run: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlprompt", "label", str(run), "--no-open", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: dict[str, str] = {}
        for line in self.process.stdout:
            name, _, value = line.strip().partition(" ")
            self.lines[name] = value.strip()
            if name == "votes":
                break
        if "votes" not in self.lines:
            raise AssertionError(self.process.communicate()[1])
        self.url = self.lines["page"]

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.kill()
        self.process.communicate(timeout=20)

    def interrupt(self) -> tuple[int, str]:
        """As Ctrl-C; returns the exit code and what was printed after the address."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out
