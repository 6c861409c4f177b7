import re
import runpy
import time
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_loop_on_the_page_is_short_fast_and_finds_the_planted_prompt(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code.splitlines()) <= 30
    script = tmp_path / "loop.py"
    script.write_text(code, encoding="utf-8")
    started = time.perf_counter()
    names = runpy.run_path(str(script))
    assert time.perf_counter() - started < 10
    scorer = names["env"].unwrapped.writing.scorer
    assert names["best"][1] == scorer.target.optimum
    assert scorer.ledger.snapshot()["used"]["calls"] <= 6_400 * 16  # 32 prompts x 200 steps x 16 examples
