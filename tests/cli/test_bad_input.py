"""Every mistake that the command line meets: one line, exit code 2 or 1 as fits, nothing lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlprompt.cli.main import main

Config = Callable[..., Path]


def _fails(arguments: list[str], code: int, parts: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(arguments) == code
    captured = capfd.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert captured.err.endswith(errors[0] + "\n")
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in errors[0]
    return errors[0]


VERBS = ["train", "check"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("task.shot=4", ["unknown key 'task.shot'", "did you mean 'shots'"]),
        ("algoritm.lr=1", ["unknown key 'algoritm'", "did you mean 'algorithm'?"]),
        ("seed", ["override 'seed' is not of the form section.key=value"]),
        ("algorithm.lr=-1", ["algorithm.lr", "greater than 0"]),
        ("budget.max_target_calls=0", ["budget.max_target_calls", "greater than or equal to 1, got 0"]),
        ("algorithm.name=pppo", ["unknown algorithm 'pppo'", "did you mean 'ppo'?"]),
        ("policy.kind=categoric", ["categoric", "did you mean 'categorical'?"]),
        ("target.name=planted:flatt", ["unknown landscape 'flatt'"]),
        ("task.name=rotten-tomatos", ["rotten-tomatos", "did you mean 'rotten-tomatoes'?"]),
        ("task.template='{sentence} {prompt}'", ["sentence"]),
        ("task.template='{input} only'", ["prompt"]),
        ("env={kind: rewrite, meta_prompt: Improve this., draft: x}", ["meta-prompt has no slot {draft}"]),
        ("env={kind: rewrite}", ["has the slot {draft}, but env.draft is empty"]),
        ("env={kind: stimulus, meta_prompt: prewrite}", ["meta-prompt 'prewrite' has no slot {input}"]),
        ("policy.device=gpu", ["device 'gpu' is unknown; use auto, cpu, cuda or cuda:N"]),
        ("policy.device=cuda:99", ["device 'cuda:99'", "CUDA devices; use device=auto or cpu"]),
        ("env={samples: 4}", ["env.samples and env.best_of are for prompts that are written for one input"]),
    ],
    ids=lambda value: value.split("=")[0] if isinstance(value, str) else "",
)
def test_a_wrong_setting_is_named_with_the_way_out(
    verb: str, override: str, parts: list[str], small_config: Config, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _fails([verb, str(small_config()), override], 2, parts, capfd)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_configuration(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    _fails([verb, "no/such.yaml"], 2, ["configuration not found: no/such.yaml"], capfd)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("text", ["a: [", "- a list", "a: \x00"], ids=["broken", "list", "control"])
def test_a_configuration_that_is_no_mapping(
    verb: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    _fails([verb, str(tmp_path / "bad.yaml")], 2, ["bad.yaml"], capfd)


@pytest.mark.parametrize("verb", VERBS)
def test_t3_yaml_that_names_python_objects_is_refused(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "bad.yaml").write_text(f'seed: !!python/object/apply:os.system ["touch {canary}"]\n')
    _fails([verb, str(tmp_path / "bad.yaml")], 2, ["bad.yaml"], capfd)
    assert not canary.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_data_file_is_named(
    verb: str, tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text(
        "name: mine\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n"
        'columns: {input: text, reference: label}\nchoices: [" no", " yes"]\ntemplate: "{input} {prompt}"\n'
    )
    _fails([verb, str(small_config(task={"name": str(card)}))], 2, ["train.tsv"], capfd)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("section", ["target", "policy"])
def test_an_unknown_model_offline(
    verb: str,
    section: str,
    small_config: Config,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "nobody/no-such-model"
    sections = {"target": {"name": name}, "policy": {"kind": "lm-adaptor", "model": name}}
    _fails([verb, str(small_config(**{section: sections[section]}))], 2, [name], capfd)


REWARDS = {
    "length": ("return [1.0]", ["1", "12"]),
    "nan": ("return [float('nan')] * len(outputs)", ["nan"]),
    "text": ("return ['high'] * len(outputs)", ["returned a str"]),
    "exception": ("raise KeyError('colour')", ["KeyError", "colour"]),
    "upside_down": (
        "return [-float(o.choice_logprobs[r]) for o, r in zip(outputs, references)]",
        ["below the wrong one"],
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", REWARDS)
def test_t8_a_faulty_reward_is_found_before_the_run(
    verb: str, fault: str, tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    body, parts = REWARDS[fault]
    module = f"bad_reward_{fault}"  # imported once a process, so each has its own name
    (tmp_path / f"{module}.py").write_text(f"def score(*, outputs, references, **columns):\n    {body}\n")
    name = f"{module}:score"
    _fails([verb, str(small_config(reward=[{"name": name}]))], 2, [name, *parts], capfd)
    assert not list(tmp_path.glob("runs/*/*/prompts/*"))


@pytest.mark.parametrize("verb", VERBS)
def test_t3_code_outside_the_folder_is_not_imported(
    verb: str, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    _fails([verb, str(small_config(reward=[{"name": "os:system"}]))], 2, ["os:system", "--allow-module os"], capfd)


TRAPS = {
    "a reward by _target_": "reward=[{_target_: os.system}]",
    "a reward with _target_": "reward=[{name: gap, kwargs: {_target_: os.system}}]",
    "a policy with _target_": "policy._target_=os.system",
    "policy kwargs with _target_": "policy.kwargs._target_=os.system",
    "a target with _target_": "target.kwargs._target_=os.system",
    "a stabiliser by _target_": "stabilisers=[{_target_: os.system}]",
    "an algorithm of the system": "algorithm.name=os:system",
    "a policy of the system": "policy.kind=os:system",
    "a target of the system": "target.name=os:system",
    "a stabiliser of the system": "stabilisers=[{name: 'os:system'}]",
    "a reward in the folder above": "reward=[{name: '..trap_above:score'}]",
    "a reward by its path": "reward=[{name: '../trap_above:score'}]",
    "an algorithm by its path": "algorithm.name=../trap_above:score",
    "a Python object": "task.name=!!python/object/apply:os.system ['touch canary']",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("trap", TRAPS)
def test_t3_a_configuration_cannot_name_code_elsewhere(
    verb: str,
    trap: str,
    small_config: Config,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\n\ndef score(*, outputs, **columns):\n    return [1.0 for _ in outputs]\n"
    (tmp_path / "trap_above.py").write_text(code)
    config = tmp_path / "below" / "small.yaml"
    config.parent.mkdir()
    small_config().rename(config)
    _fails([verb, str(config), TRAPS[trap]], 2, [], capfd)
    assert not canary.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", "a/b", ""])
def test_t3_the_name_of_a_run_leads_nowhere_else(
    name: str, small_config: Config, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _fails(["train", str(small_config(name=name)), "--quiet"], 2, ["is no folder name"], capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_t3_a_linked_checkpoint_is_not_resumed_from(
    tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    config = str(small_config())
    assert main(["train", config, "--quiet"]) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    *older, newest = sorted(run.glob("checkpoint-*"))
    for path in older:
        shutil.rmtree(path)
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    longer = ["train", config, "algorithm.iterations=4", "--resume", str(run), "--quiet"]
    _fails(longer, 1, [newest.name, "is a link"], capfd)
    assert (tmp_path / "elsewhere" / "state.json").is_file()


def test_a_run_folder_that_cannot_be_written(
    tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    config = small_config(run={"dir": str(tmp_path / "file" / "runs")})
    _fails(["train", str(config), "--quiet"], 1, ["cannot write", str(tmp_path / "file")], capfd)
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_what_is_no_run(tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    _fails(["train", str(small_config()), "--resume", str(tmp_path / "nothing")], 1, ["nothing"], capfd)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_with_all_checkpoints_truncated_loses_nothing(
    tmp_path: Path, small_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small_config()
    assert main(["train", str(config), "--quiet"]) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    damaged = [path for path in run.glob("checkpoint-*/*") if path.suffix in {".safetensors", ".json"}]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = _tree(run)
    longer = ["train", str(config), "algorithm.iterations=4", "--resume", str(run), "--quiet"]
    _fails(longer, 1, ["checkpoint"], capfd)
    after = _tree(run)
    assert {name for name in before if before[name] != after.get(name)} <= {"environment.json"}
