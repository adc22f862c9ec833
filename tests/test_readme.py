"""The README runs, shows the loops as they are, quotes the benchmark as it is, and lists every public name."""

import json
import pathlib
import re
import subprocess
import sys

import jax

import momentax

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_short_examples_run(capsys):
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"):  # users add a bias to a batch
        for block in BLOCKS[:2]:
            exec(block, namespace)
        assert namespace["loss"](namespace["params"]) < 0.1
    assert "dense/kernel  (4, 3)  matrix" in capsys.readouterr().out
    assert len(BLOCKS[0].splitlines()) <= 12


def test_loops_are_those_of_the_examples():
    for block, name in zip(BLOCKS[2:], ("nnx_loop.py", "linen_loop.py"), strict=True):
        code = (ROOT / "examples" / name).read_text()
        assert block.strip() == code.strip(), f"README.md shows another examples/{name}"
        assert len(code.splitlines()) < 80


def test_words_are_those_of_the_committed_benchmark():
    results = json.loads((ROOT / "benchmarks/results/elementwise_v5e.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    quoted = re.findall(r"\| `([\w.]+)` \| ([\d.]+) \| (\d+) \| `([\w.]+)` \| ([\d.]+) \| (\d+) \|", README)
    assert len(quoted) >= 6
    for ours, words, state, theirs, their_words, their_state in quoted:
        for name, moved, kept in ((ours, words, state), (theirs, their_words, their_state)):
            assert f"{rows[name]['words']:.1f}" == moved
            assert f"{rows[name]['state_bytes_per_parameter']:.0f}" == kept


def test_matrix_table_is_that_of_the_committed_benchmark():
    results = json.loads((ROOT / "benchmarks/results/orthogonalize_cpu.json").read_text())
    rows = {row["name"]: row for row in [*results["layers"], *results["matrices"]]}
    quoted = re.findall(r"\| ([\w ]+, \w+) \| [\d.,]+ \| [\d.,]+ \| ([\d.]+) \|", README)
    assert len(quoted) == 6
    assert all(f"{rows[name]['ratio']:.2f}" == ratio for name, ratio in quoted)


def test_language_model_table_is_that_of_the_committed_benchmark():
    program = ROOT / "benchmarks" / "language_model.py"
    results = ROOT / "benchmarks" / "results" / "language_model_cpu.json"
    ended = subprocess.run([sys.executable, program, "--table", results], capture_output=True, text=True)
    lines = ended.stdout.strip().splitlines()
    assert ended.returncode == 0 and len(lines) == 2 + len(json.loads(results.read_text())["rows"])
    assert all(f"  {line}\n" in README for line in lines)


def test_pod_table_is_that_of_the_committed_benchmark():
    program, results = ROOT / "benchmarks" / "pod.py", ROOT / "benchmarks" / "results" / "pod.json"
    ended = subprocess.run([sys.executable, program, "--table", results], capture_output=True, text=True)
    rows = json.loads(results.read_text())["comparison"]
    assert ended.returncode == 0 and len(ended.stdout.strip().splitlines()) == 2 + len(rows)
    assert ended.stdout.strip() in (ROOT / "docs" / "meshes.md").read_text()
    assert not [row for row in rows if row["optimizer"].startswith("momentax") and "failed" in row]


def test_docs_link_to_what_exists():
    for page in (*ROOT.glob("docs/*.md"), ROOT / "examples/pod/README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_table_lists_every_public_name_and_links_to_what_exists():
    public = [name for name in vars(momentax) if not name.startswith("_") and callable(getattr(momentax, name))]
    missing = [name for name in public if f"`{name}`" not in README]
    assert not missing, f"add to the table of README.md: {missing}"
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}"
