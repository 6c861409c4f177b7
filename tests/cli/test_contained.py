"""T12 and T16: whole processes that train and evaluate, with canary secrets around them and no way to the network.

Everything that they print and write is searched, Ray's logs too; and every connection that a Python process of theirs
tries to make is looked at, Ray's workers and its dashboard process included.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mock_server import Body, Fault, MockServer

pytestmark = [pytest.mark.slow, pytest.mark.ray]

KEY, TOKEN, PASSWORD, IN_URL = "sk-canary-key-417", "canary-token-528", "canary-password-639", "canary-in-url-740"
REWARD = '''
import logging
import os

CALLS = []


def leaky(*, outputs, **columns):
    """Fails in the second iteration, and says what it should not."""
    logging.getLogger("leaky").warning("asking with %s", os.environ["LEAKY_TOKEN"])
    CALLS.extend([1] if len(outputs) > 12 else [])  # 16 less those without an answer
    if len(CALLS) == 2:
        raise ValueError(f"login with {os.environ['MY_PASSWORD']} failed")
    return [1.0 for _ in outputs]


leaky.gold_not_ordered = True
'''
BLOCKER = '''
"""Imported by every Python process at its start: lets sockets reach this machine only, and writes down all attempts."""
import errno
import os
import socket
import sys

connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def is_here(host):
    name = host.decode() if isinstance(host, bytes) else host
    return name in (None, "", "localhost", "::1", "0.0.0.0", "::", socket.gethostname()) or name.startswith("127.")


def look_at(host, what):
    allowed = is_here(host)
    with open(os.environ["T16_ATTEMPTS"], "a") as file:
        file.write(f"{'here' if allowed else 'AWAY'} {what} {host} by {' '.join(sys.argv)[:200]}\\n")
    if not allowed:
        raise OSError(errno.ENETUNREACH, "the network is blocked")


def checked(function):
    def call(self, address):
        # Connecting a datagram socket sends nothing: Ray finds its own address so.
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type != socket.SOCK_DGRAM:
            look_at(address[0], "connect")
        return function(self, address)

    return call


def looked_up(host, *arguments, **keywords):
    look_at(host, "lookup")
    return lookup(host, *arguments, **keywords)


socket.socket.connect, socket.socket.connect_ex = checked(connect), checked(connect_ex)
socket.getaddrinfo = looked_up
'''


@dataclass(frozen=True)
class Session:
    """What train, eval and a mistaken train left behind."""

    folder: Path
    """Configuration, run folder, Ray's logs, attempts to connect."""
    run: Path
    done: dict[str, subprocess.CompletedProcess[str]]
    calls: list[Any]
    """What the server saw."""
    environment: dict[str, str]

    @property
    def printed(self) -> str:
        """By all three commands."""
        return "".join(done.stdout + done.stderr for done in self.done.values())

    @property
    def attempts(self) -> list[str]:
        """To connect, and to look up an address."""
        return (self.folder / "attempts").read_text().splitlines()


def config(folder: Path) -> dict[str, Any]:
    """PPO on two env runners, whose target is behind HTTP."""
    return {
        "name": "secret",
        "task": {"name": "planted", "shots": 2, "dev_shots": 2, "test_limit": 4},
        "target": {"name": "openai:mock", "kwargs": {"choices_by": "parsed", "backoff_s": 0.01, "max_attempts": 2}},
        "policy": {"kind": "categorical", "model": "planted-20"},
        "env": {"prompt_length": 2, "num_envs": 4, "action": "sequence"},
        "reward": [{"name": "accuracy"}, {"name": "leaky_reward:leaky", "weight": 0.1}],
        "algorithm": {"name": "ppo", "iterations": 2},
        "ray": {"num_env_runners": 2},
        "run": {"dir": str(folder / "runs"), "max_failed_fraction": 1.0},
    }


def fault(number: int, body: Body) -> Fault | None:
    """The server repeats secrets in bodies and headers of its errors."""
    said = f"Incorrect API key provided: {KEY}"
    if number % 9 == 4:
        return Fault("status", 401, {"x-echo": KEY, "set-cookie": TOKEN}, {"error": {"message": said}})
    return Fault("status", 400, {"x-echo": KEY}, f"headers were Authorization: Bearer {KEY}") if number == 6 else None


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    folder = Path(tempfile.mkdtemp(prefix="t12-"))  # short: Ray's sockets lie in it
    (folder / "leaky_reward.py").write_text(REWARD)
    (folder / "secret.yaml").write_text(yaml.safe_dump(config(folder)))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(BLOCKER)
    with MockServer(faults=fault, answer=lambda body: f"yes {KEY}") as server:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_USAGE_STATS_ENABLED"}
        environment |= {"OPENAI_API_KEY": KEY, "LEAKY_TOKEN": TOKEN, "MY_PASSWORD": PASSWORD}
        environment |= {"OPENAI_BASE_URL": server.url.replace("/v1", f"/{IN_URL}/v1"), "RAY_TMPDIR": str(folder)}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "T16_ATTEMPTS": str(folder / "attempts")}
        environment["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[2])])

        def rlprompt(*arguments: str, level: str = "warning") -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "rlprompt", *arguments],
                env={**environment, "RLPROMPT_LOG_LEVEL": level},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )

        done = {"train": rlprompt("train", str(folder / "secret.yaml"))}
        assert done["train"].returncode == 0, done["train"].stderr
        (run,) = (folder / "runs" / "secret").iterdir()
        done["eval"] = rlprompt("eval", str(run), "--json")
        done["mistake"] = rlprompt("train", str(folder / "secret.yaml"), f"target.kwargs.base_url=http://a:{KEY}@b/v1")
        yield Session(folder, run, done, list(server.calls), environment)
    shutil.rmtree(folder)


def test_t12_no_secret_is_printed_written_or_logged(session: Session) -> None:
    assert session.done["eval"].returncode == 0, session.done["eval"].stderr
    assert session.done["mistake"].returncode == 2
    assert session.calls
    assert {call.headers["authorization"] for call in session.calls} == {f"Bearer {KEY}"}
    assert all(IN_URL in call.path for call in session.calls)
    assert "asking with [redacted]" in session.printed  # the reward did say it
    assert "ValueError: login with [redacted] failed" in session.printed
    files = [path for path in session.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if "ray" in path.parts and path.suffix == ".log"]  # of the driver and the workers
    assert [path for path in files if path.suffix == ".parquet"]
    places = {str(path): path.read_bytes() for path in files} | {"what was printed": session.printed.encode()}
    for canary in (KEY, TOKEN, PASSWORD, IN_URL):
        assert [name for name, content in places.items() if canary.encode() in content] == []


def test_t16_offline_and_without_a_network_a_run_passes_and_nobody_tries_to_reach_it(session: Session) -> None:
    assert session.done["train"].returncode == 0
    assert session.done["eval"].returncode == 0
    assert any(line.startswith("here connect 127.0.0.1") for line in session.attempts)  # the target: it was looked at
    away = [line for line in session.attempts if not line.startswith("here ")]
    # Ray's dashboard process asks whether this machine is a cloud's; the answer stays in it, as it reports nothing.
    clouds = re.compile(
        r"AWAY lookup (169\.254\.169\.254|metadata\.google\.internal) by \S+/ray/dashboard/dashboard\.py "
    )
    assert [line for line in away if not clouds.match(line)] == []


def test_t16_the_blocker_blocks_and_writes_it_down(session: Session, tmp_path: Path) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1:80/', timeout=5)"
    environment = {**session.environment, "T16_ATTEMPTS": str(tmp_path / "attempts")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "the network is blocked" in done.stderr
    assert "AWAY lookup 192.0.2.1 by -c\n" in (tmp_path / "attempts").read_text()


def test_t16_ray_sends_no_usage_report(session: Session) -> None:
    """The process that would send it starts without a dashboard too; its first report comes after a minute."""
    told = [path.read_text() for path in session.folder.rglob("dashboard*.log")]
    assert any("Usage reporting is disabled" in text for text in told), told
