"""Benchmarks keep their bars: what is counted now, what was timed in the committed results."""

import importlib.util
import json
import pathlib
import subprocess
import sys

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
PROGRAM = BENCHMARKS / "elementwise.py"


def run(*arguments, program=PROGRAM):
    return subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)


def test_words_per_parameter_or_how_to_count_them():
    ended = run("--only", "heavy_ball,am_sgd")
    if importlib.util.find_spec("libtpu") is None:
        assert ended.returncode == 2 and 'pip install -e ".[tpu-aot]"' in ended.stderr
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


def test_the_gram_form_has_the_operations_of_its_formula():
    ended = run("--only", "gram", program=BENCHMARKS / "orthogonalize.py")
    rows = json.loads(ended.stdout)["gram"]
    assert ended.returncode == 0 and rows and all(abs(row["ratio"] - 1) <= 0.02 for row in rows)


def test_committed_matrix_results_keep_every_bar():
    results = json.loads((BENCHMARKS / "results" / "orthogonalize_cpu.json").read_text())
    rows = [*results["layers"], *results["matrices"], *results["gram"]]
    assert len(rows) == 11 and all(row["within_bar"] for row in rows)


def test_steps_to_a_loss_are_straight_between_evaluations():
    spec = importlib.util.spec_from_file_location("language_model", BENCHMARKS / "language_model.py")
    language_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(language_model)
    key = language_model.train_lm.VALIDATION
    records = [{"step": 10, key: 4.0}, {"step": 15}, {"step": 20, key: 3.0}, {"step": 30, key: 3.5}]
    assert [language_model.steps_to(records, target) for target in (4.5, 3.25, 3.0, 2.0)] == [10, 17.5, 20, None]


def test_committed_language_model_results_are_of_one_search():
    results = json.loads((BENCHMARKS / "results" / "language_model_cpu.json").read_text())
    assert len(results["rows"]) >= 4 and results["rows"][0]["optimizer"] == "adamw"
    for row in results["rows"]:
        assert len(row["sweep"]) == 5 and not row["at_an_edge"] and len(row["bits_per_byte"]) == 3
        assert row["learning_rate"] == float(min(row["sweep"], key=lambda rate: row["sweep"][rate] or float("inf")))
