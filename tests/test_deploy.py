"""The files of deploy/ and the commands of the cluster guide: parsed, checked by Ray, held against command lines."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from mock_server import MockServer

from rlprompt import __version__
from rlprompt.cli.main import app, main
from rlprompt.config import load_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "cluster-guide.md"
SOURCES = (GUIDE, DEPLOY / "slurm.sh", DEPLOY / "rayjob.yaml", DEPLOY / "ray-cluster.yaml")
CHECKOUTS = ("/opt/rlprompt/", "/shared/rlprompt/")
"""Where the checkout is on nodes."""
VARIABLES = {
    "${arguments[@]}": "deploy/cluster.yaml",
    "${address##*:}": "6379",
    "$address": "head:6379",
    "$SLURM_CPUS_PER_TASK": "8",
}
"""Of slurm.sh, with something that fits."""
STAND_IN = """#!/usr/bin/env bash
echo "{name} $*" >> calls.txt
"""


def documents(name: str) -> list[dict[str, Any]]:
    """Returns the documents of a YAML file in deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def lines(path: Path) -> Iterator[str]:
    """Yields what may be commands: every text of a YAML file, of a page the blocks of commands, of a script all."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        for document in yaml.safe_load_all(text):
            yield from _texts(document)
        return
    if path.suffix == ".md":
        text = "\n".join(block.partition("```")[0] for block in text.split("```bash\n")[1:])
    yield from text.replace("\\\n", " ").splitlines()


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _texts(child)


def calls(line: str, program: str) -> Iterator[list[str]]:
    """Yields the arguments of each call of a program in a line of shell, in quoted lines and behind `--` too."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # Python in a script, or half a line
        return
    commands: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        for place, word in enumerate(command):
            if " " in word:
                yield from calls(word, program)
            elif word.rpartition("/")[2] == program and command[place + 1 :] and command[0] not in ("cd", "test"):
                yield command[place + 1 :]
                break


def found(program: str) -> list[Any]:
    """Returns a test parameter for every call of a program in deploy/ and in the guide."""
    return [
        pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")
        for path in SOURCES
        for line in lines(path)
        for words in calls(line, program)
        if words[0].replace("-", "").isalpha()
    ]


def here(word: str) -> str:
    """Returns a path of a node as one of this checkout."""
    for place in CHECKOUTS:
        word = word.removeprefix(place)
    for variable, value in VARIABLES.items():
        word = word.replace(variable, value)
    return word


def test_calls_are_found_in_all_the_places_where_they_may_stand() -> None:
    line = "A=1 ray exec x.yaml 'cd /a/rlprompt && B=2 .venv/bin/rlprompt train c.yaml --quiet' # rlprompt no"
    assert list(calls(line, "rlprompt")) == [["train", "c.yaml", "--quiet"]]
    assert list(calls("srun -n 2 ray start --block &", "ray")) == [["start", "--block"]]
    assert list(calls("it isn't one", "ray")) == []
    assert {path.name for path in SOURCES if any(True for line in lines(path) for _ in calls(line, "rlprompt"))} == {
        "cluster-guide.md",
        "slurm.sh",
        "rayjob.yaml",
    }


@pytest.mark.parametrize("words", found("rlprompt"))
def test_every_rlprompt_command_is_one_of_ours(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    verb, *arguments = [here(word) for word in words]
    command: Any = typer.main.get_command(app)
    given = command.commands[verb].make_context(verb, arguments).params  # raises for options that do not exist
    if verb in ("train", "check"):
        assert load_config(given["config"], given["overrides"]).name == "cluster"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the module imports
@pytest.mark.parametrize("words", found("ray"))
def test_every_ray_command_is_one_of_ray_s(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts.scripts import cli

    monkeypatch.chdir(ROOT)
    command: Any = cli
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, [here(word) for word in words])


def test_the_cluster_file_is_what_ray_s_launcher_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (written,) = documents("ray-cluster.yaml")
    prepared = prepare_config(written)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(written["provider"]["worker_ips"]) == 2
    starts = [line for line in (*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"])]
    assert sum("RAY_AUTH_MODE=token" in line for line in starts) == sum("ray start" in line for line in starts) == 2


def test_the_rayjob_has_the_fields_of_its_kind_and_a_cluster_that_is_large_enough() -> None:
    (job,) = documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == {
        "entrypoint",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert (cluster["authOptions"], spec["backoffLimit"]) == ({"mode": "token"}, 0)
    locked = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["rayVersion"] == locked["ray"]
    assert set(cluster["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    ray = load_config(DEPLOY / "cluster.yaml").ray
    given = workers["replicas"] * int(container["resources"]["requests"]["cpu"])
    assert given == ray.num_env_runners * ray.num_cpus_per_env_runner


def test_head_and_workers_have_one_image_and_all_pods_mount_what_they_say() -> None:
    cluster = documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {f"rlprompt:{__version__}"}
    assert f"-t rlprompt:{__version__} ." in (DEPLOY / "Dockerfile").read_text()
    for pod in (*pods, documents("target.yaml")[0]["spec"]["template"]):
        (container,) = pod["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_the_target_s_service_is_the_one_that_the_job_asks() -> None:
    deployment, service, policy = documents("target.yaml")
    assert [part["kind"] for part in (deployment, service, policy)] == ["Deployment", "Service", "NetworkPolicy"]
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert labels == policy["spec"]["podSelector"]["matchLabels"]
    (container,) = documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ]
    environment = {entry["name"]: entry for entry in container["env"]}
    (port,) = service["spec"]["ports"]
    assert environment["OPENAI_BASE_URL"]["value"] == f"http://{service['metadata']['name']}:{port['port']}/v1"
    (server,) = pod["spec"]["containers"]
    assert server["env"][0]["valueFrom"] == environment["OPENAI_API_KEY"]["valueFrom"]
    assert f"openai:{server['command'][2]}" == load_config(DEPLOY / "cluster.yaml").target.name


def test_the_image_copies_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [name for line in text.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"rlprompt", "envs", "policies", "rewards", "deploy"} < set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_recipe_passes_its_check_against_a_server(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    small = "policy={kind: causal-lm, model: planted-50, kwargs: {lora: {r: 2, targets: [c_attn]}}}"
    with MockServer(next_tokens=[("positive", -0.2), ("negative", -1.8)]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert main(["check", str(DEPLOY / "cluster.yaml"), small]) == 0
        assert {call.body["model"] for call in server.calls} == {"Qwen/Qwen2.5-7B-Instruct"}
    told = " ".join(capsys.readouterr().out.split())
    # 40 iterations x 128 rewrites x 16 examples, and 8 prompts x 64 dev examples.
    assert "the run, at most 82,432 calls" in told
    assert "warning" not in told


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of three nodes, with stand-ins for all programs that its script calls."""
    programs = {
        "scontrol": "printf 'node1\\nnode2\\nnode3\\n'",
        # It waits for head and workers, as what it stands for.
        "python": "[[ $1 == -c ]] && echo -n secret && exit\n"
        "until [[ $(grep -c . pids.txt 2> /dev/null) == 2 ]]; do sleep 0.05; done",
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "ray": 'stat -c %a "$RAY_AUTH_TOKEN_PATH" >> modes.txt; echo $$ >> pids.txt; exec sleep 60',
        "rlprompt": 'trap "echo stopped >> calls.txt; exit 143" TERM; touch started\n'
        "for ((i = 0; i < ${TENTHS:-0}; i++)); do sleep 0.1; done; exit 3",
    }
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, does in programs.items():
        (folder / name).write_text(STAND_IN.format(name=name) + does + "\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "8"}
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, **job, "SLURM_SUBMIT_DIR": str(tmp_path), "HOME": str(tmp_path)}


def _told(folder: Path, program: str) -> list[str]:
    return sorted(line for line in (folder / "calls.txt").read_text().splitlines() if line.startswith(f"{program} "))


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)


def test_the_slurm_script_starts_a_cluster_with_a_token_and_ends_as_the_run_does(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    command = ["bash", str(DEPLOY / "slurm.sh"), "a.yaml", "seed=1"]
    done = subprocess.run(command, env={**slurm, "RUN": "runs/a/ID"}, timeout=60, check=False)
    assert done.returncode == 3
    assert _told(tmp_path, "rlprompt") == [
        "rlprompt train a.yaml seed=1 --resume runs/a/ID ray.address=node1:20007 --quiet"
    ]
    head, workers = sorted(_told(tmp_path, "ray"), key=lambda line: "--head" not in line)
    assert head.startswith("ray start --head --port=20007 --num-cpus=0 ")
    assert workers.startswith("ray start --address=node1:20007 --num-cpus=8 ")
    (srun,) = _told(tmp_path, "srun")
    assert "--nodes=2 --ntasks=2 --cpus-per-task=8 --exclude=node1 ray start " in srun
    assert "python - node1:20007 16" in _told(tmp_path, "python")  # waits for 2 nodes x 8 CPUs
    assert (tmp_path / "modes.txt").read_text().split() == ["600", "600"]
    assert list(tmp_path.glob(".rlprompt-token*")) == []
    end = time.monotonic() + 10
    while not all(_gone(int(pid)) for pid in (tmp_path / "pids.txt").read_text().split()):
        assert time.monotonic() < end, "Ray was left behind"
        time.sleep(0.05)


def test_the_slurm_script_passes_the_warning_on_and_waits_for_the_run(tmp_path: Path, slurm: dict[str, str]) -> None:
    with subprocess.Popen(["bash", str(DEPLOY / "slurm.sh"), "a.yaml"], env={**slurm, "TENTHS": "600"}) as job:
        end = time.monotonic() + 30
        while not (tmp_path / "started").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 143
    assert (tmp_path / "calls.txt").read_text().splitlines()[-1] == "stopped"


def test_the_slurm_script_refuses_a_single_node(tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / ".venv" / "bin" / "scontrol").write_text("#!/usr/bin/env bash\necho node1\n")
    command = ["bash", str(DEPLOY / "slurm.sh"), "a.yaml"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, "error: one node is not enough; ask for two or more with --nodes\n")
