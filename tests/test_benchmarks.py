"""The benchmark keeps its bars where the TPU compiler is installed, and says how to get it where it is not."""

import importlib.util
import json
import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).parent.parent / "benchmarks" / "elementwise.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True)


def test_words_per_parameter_or_how_to_count_them():
    ended = run("--only", "heavy_ball,am_sgd")
    if importlib.util.find_spec("libtpu") is None:
        assert ended.returncode == 2 and 'pip install "momentax[tpu-aot]"' in ended.stderr
    else:
        rows = json.loads(ended.stdout)["rows"]
        assert ended.returncode == 0 and [row["within_bar"] for row in rows] == [True, True]


def test_results_are_not_overwritten(tmp_path):
    kept = tmp_path / "results.json"
    kept.write_text("kept")
    ended = run("--out", str(kept))
    assert ended.returncode == 2 and "--force" in ended.stderr and kept.read_text() == "kept"


def test_committed_results_keep_every_bar():
    results = json.loads((PROGRAM.parent / "results" / "elementwise_v5e.json").read_text())
    assert all(row["within_bar"] for row in results["rows"])
    barred = {row["name"] for row in results["rows"] if row["bar"]}
    assert barred >= {"heavy_ball", "adamw", "adan", "adamp", "am_sgd", "spam", "stable_spam", "lion_k_row_norm"}
    assert next(row["state_bar"] for row in results["rows"] if row["name"] == "sparse_adam_quarter") == 0.40
