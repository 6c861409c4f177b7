"""Ray clusters that others can reach: told of by `rlprompt doctor`, with what to do."""

import os
import sys
from pathlib import Path

import pytest

from rlprompt.cli import doctor
from rlprompt.cli.main import main
from rlprompt.cli.ray_exposure import Listener, listeners


def process(folder: Path, number: int, command: list[str], **environment: str) -> None:
    """What Linux shows of a process."""
    (folder / str(number)).mkdir(parents=True)
    (folder / str(number) / "cmdline").write_bytes("\0".join(command).encode() + b"\0")
    variables = [f"{name}={value}" for name, value in environment.items()]
    (folder / str(number) / "environ").write_bytes("\0".join(variables).encode() + b"\0")


def head(address: str) -> list[str]:
    return ["/site/ray/core/src/ray/gcs/gcs_server", "--gcs_server_port=6379", f"--node-ip-address={address}"]


@pytest.mark.parametrize(
    ("address", "mode", "is_exposed", "said"),
    [
        ("127.0.0.1:6379", "", False, "127.0.0.1:6379, this machine only"),
        ("localhost:8265", "", False, "localhost:8265, this machine only"),
        ("10.0.0.3:6379", "token", False, "10.0.0.3:6379, reachable by others, asks for a token"),
        ("10.0.0.3:6379", "", True, "10.0.0.3:6379, reachable by others, asks for no token"),
        ("0.0.0.0:10001", "disabled", True, "0.0.0.0:10001, reachable by others, asks for no token"),
        ("[::]:8265", "", True, "[::]:8265, reachable by others, asks for no token"),
        ("[::1]:8265", "", False, "[::1]:8265, this machine only"),
    ],
)
def test_who_can_reach_it_and_whether_it_asks_for_a_token(address: str, mode: str, is_exposed: bool, said: str) -> None:
    listener = Listener("head", address, mode)
    assert (listener.is_exposed, str(listener)) == (is_exposed, said)


def test_all_listening_parts_are_found_and_other_processes_are_not(tmp_path: Path) -> None:
    process(tmp_path, 7, head("10.0.0.3"), RAY_AUTH_MODE="token", HOME="/root")
    process(tmp_path, 8, ["python", "-u", "/site/ray/dashboard/dashboard.py", "--host=0.0.0.0", "--port=8265"])
    process(tmp_path, 9, ["python", "-m", "ray.util.client.server", "--host=127.0.0.1", "--port=10001"])
    process(tmp_path, 10, ["vi", "gcs_server.txt", "--node-ip-address=10.0.0.3"])
    process(tmp_path, 11, [])
    (tmp_path / "meminfo").write_text("")
    assert listeners(tmp_path) == [
        Listener("head", "10.0.0.3:6379", "token"),
        Listener("dashboard", "0.0.0.0:8265", ""),
        Listener("client server", "127.0.0.1:10001", ""),
    ]
    assert listeners(tmp_path / "nowhere") is None


def test_doctor_warns_of_an_exposed_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process(tmp_path, 7, head("10.0.0.3"))
    monkeypatch.setattr(doctor, "listeners", lambda: listeners(tmp_path))
    monkeypatch.setattr(doctor, "_SECTIONS", (("ray", doctor._ray),))
    assert main(["doctor"]) == 0  # nothing is missing
    shown = " ".join(capsys.readouterr().out.split())
    assert "WARNING ray head 10.0.0.3:6379, reachable by others, asks for no token" in shown
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on all of its nodes" in shown


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_ray_of_a_run_listens_on_this_machine_only() -> None:
    import ray

    from rlprompt.cluster import RayConfig
    from rlprompt.ray_session import start_ray

    ray.shutdown()
    start_ray(RayConfig())
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    assert host == "127.0.0.1"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    own = [address for address, number in listening if int(number, 16) == int(port)]
    assert own
    assert all(address.endswith("0100007F") for address in own)  # 127.0.0.1, in the kernel's spelling
    found = listeners()
    assert found is not None
    assert any(listener.part == "head" and listener.is_local for listener in found)
    assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") is None
