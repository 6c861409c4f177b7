"""The README's ten lines print what the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.ray
def test_the_ten_lines_print_their_output(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Ten lines")[2]
    code, output = re.findall(r"```(?:python)?\n(.*?)```", section, flags=re.DOTALL)[:2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    script = tmp_path / "ten_lines.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "RLPROMPT_RUN_DIR": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
