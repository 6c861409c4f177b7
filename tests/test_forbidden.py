"""What the package must never contain: unsafe loading, evaluated text, a shell, prints, unfinished work (T1)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("rlprompt", "envs", "policies", "rewards") for path in (ROOT / folder).rglob("*.py")
)
UNSAFE = {
    "pickle": r"\b(c?pickle|cloudpickle|dill|joblib|shelve|marshal)\b",
    "torch.load without weights_only": r"(?<!safetensors\.)\btorch\.load\((?!.*weights_only=True)",
    "numpy pickles": r"allow_pickle\s*=\s*True",
    "eval or exec": r"(?<![\w.])(eval|exec)\(",
    "unsafe YAML": r"\byaml\.(load|load_all|full_load|unsafe_load)\(",
    "a shell": r"shell\s*=\s*True|\bos\.(system|popen)\(",
    "archives, whose names may lead elsewhere": r"\b(tarfile|zipfile|unpack_archive)\b",
    "remote code": r"trust_remote_code\s*=\s*True",
    "the global generator": r"\b(np|numpy)\.random\.(seed|rand|randn|randint|choice|shuffle|permutation)\("
    r"|\btorch\.manual_seed\(|\brandom\.(seed|random|choice|shuffle|randint)\(",
}


def _code_lines(path: Path) -> list[str]:
    """The lines without strings that stand alone (docstrings) and without comments."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return [re.sub(r"(^|\s)#.*", "", line) for line in lines]


def test_the_sources_are_found() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert names == {"rlprompt", "envs", "policies", "rewards"}


@pytest.mark.parametrize("what", UNSAFE)
def test_t1_nothing_unsafe_is_in_the_package(what: str) -> None:
    pattern = re.compile(UNSAFE[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(_code_lines(path), start=1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("pickle", "import pickle"),
        ("torch.load without weights_only", "torch.load(path)"),
        ("numpy pickles", "np.load(path, allow_pickle=True)"),
        ("eval or exec", "x = eval(text)"),
        ("unsafe YAML", "yaml.load(text)"),
        ("a shell", "subprocess.run(line, shell=True)"),
        ("archives, whose names may lead elsewhere", "import tarfile"),
        ("remote code", "from_pretrained(name, trust_remote_code=True)"),
        ("the global generator", "np.random.seed(0)"),
    ],
)
def test_t1_the_gate_sees_what_it_must_refuse(what: str, line: str) -> None:
    assert re.search(UNSAFE[what], line)


def test_t1_the_gate_lets_methods_and_safe_loading_pass() -> None:
    for line in ("model.eval()", "yaml.safe_load(text)", "torch.load(path, weights_only=True)", "self.exec(x)"):
        assert not any(re.search(pattern, line) for pattern in UNSAFE.values()), line


def test_nothing_is_printed_and_nothing_is_left_open() -> None:
    unfinished = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XXX|NotImplementedError)\b")
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in unfinished.finditer(text)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: print")
    assert found == []


def test_no_assert_stands_in_for_an_error_and_no_except_swallows_everything() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: bare except")
            if isinstance(node, ast.Assert):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: assert")
    assert found == []


def test_no_file_is_longer_than_the_cap() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 500} == {}
