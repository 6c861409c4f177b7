"""The script of the style-transfer table: its sums."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import style_transfer  # noqa: E402
from experiments.report import write_json  # noqa: E402


def test_the_table_of_style_transfer_has_hand_computed_numbers(tmp_path: Path) -> None:
    rows = {
        "copy": ([1.0, 1.0], [0.0, 0.0], [3.0, 4.0]),
        "manual": ([0.8, 0.6], [1.0, 0.0], [3.0, 3.0]),
        "best-of": ([0.8, 0.6], [1.0, 1.0], [3.0, 3.0]),
        "untrained": ([0.5, 0.7], [0.0, 1.0], [2.0, None]),
        "trained": ([0.4, None], [1.0, None], [2.0, None]),  # the second row failed
    }
    named = {
        name: dict(zip(style_transfer.MEASURES, values, strict=True)) | {"texts": ["", ""]}
        for name, values in rows.items()
    }
    cell = {"rows": named, "best_of": 7, "machine": "a machine", "seconds": 120, "target_calls": 1300}
    write_json(tmp_path / "seed-0.json", cell)
    lines = style_transfer.table(tmp_path, [0], {"train": 0.7, "report": 0.75}).splitlines()
    assert "2 negative test sentences, one greedy answer each but for the best of 7; a machine; 2 minutes" in lines[0]
    assert "1,300 target calls" in lines[0]
    assert lines[4].startswith("| copy of the sentence | 1.000 | 0.000 | 3.500 | 0.000 | -0.400 (")
    assert lines[5] == "| manual prompt (the draft) | 0.700 | 0.500 | 3.000 | 0.400 |  |"
    # Joint 0.8 and 0.6, against 0.8 and 0.
    assert lines[6].startswith(
        "| manual prompt, best of 7 by the training reward | 0.700 | 1.000 | 3.000 | 0.700 | +0.300 ("
    )
    assert lines[7].startswith("| untrained policy | 0.600 | 0.500 | 2.000 | 0.350 | -0.050 (")
    # 0.4 - 0.8 on the one row that both have.
    assert lines[8].startswith("| trained policy | 0.400 | 1.000 | 2.000 | 0.400 | -0.400 (")
