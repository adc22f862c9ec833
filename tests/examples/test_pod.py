"""The pod example: the same losses on every mesh, by one process or two, exact resume, nothing lost, clear refusals."""

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "pod"
SIZES = "--layers 2 --width 32 --heads 4 --hidden 32 --sequence 16 --batch-size 8 --validation-batches 1"
RUN = f"{SIZES} --steps 6 --warmup 2 --schedule constant --log-every 1 --checkpoint-every 2"


@pytest.fixture(scope="module")
def pod():
    """The program, which imports the model beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        spec = importlib.util.spec_from_file_location("pod_train", FOLDER / "train.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with jax.numpy_rank_promotion("allow"):  # the library is strict; a model is not
            yield module
        sys.modules.pop("model")


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "book.txt"
    words = random.Random(0).choices(["momentum ", "carries ", "the ", "past ", "into ", "café\n"], k=2000)
    path.write_text("".join(words), encoding="utf-8")
    return str(path)


def records(text: str) -> dict[int, float]:
    """Losses by step, from lines of which some are not ours."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"step":')]
    return {line["step"]: line["loss"] for line in lines}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(pod, book, tmp_path_factory) -> Path:
    """A finished run on the eight devices of this process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert pod.main([*RUN.split(), "--text", book, "--out", str(out)]) == 0
    return out


def test_help_names_every_group(pod, capsys):
    with pytest.raises(SystemExit, match="0"):
        pod.main(["--help"])
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--fsdp", "--experts", "--aot", "--coordinator", "--resume"))


# ------------------------------------------------------------------------------------------------------ meshes


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("--optimizer muon", "--data 2 --fsdp 2 --tensor 2"),
        ("--optimizer adamw --experts 4", "--fsdp 2 --expert 2 --tensor 2"),
    ],
)
def test_losses_are_those_of_one_device(pod, book, kind, axes):
    def losses(flags: str, devices: list[jax.Device]) -> list[float]:
        args = pod.parse([*SIZES.split(), *kind.split(), *flags.split(), "--learning-rate", "0.01", "--warmup", "0"])
        mesh = pod.make_mesh(args, devices)
        program, feed = pod.make_program(args, mesh), pod.Feed(args, mesh)
        state, found = program.init(jax.random.key(0)), []
        samples = pod.windows(pod.load_text(book, args.sequence), args.sequence)
        for batch in pod.batches(samples, feed.rows, args.batch_size, 3):
            state, bits = program.step(state, feed(batch))
            found.append(float(bits))
        return found

    one, many = losses("", jax.devices()[:1]), losses(axes, jax.devices())
    assert one[-1] < one[0] - 0.05
    np.testing.assert_allclose(many, one, rtol=1e-5)  # float32


def test_mixture_is_the_weighted_sum_of_two_experts(pod, monkeypatch):
    model = sys.modules["model"]
    monkeypatch.setattr(model, "CAPACITY", 2.0)  # room for every byte, even if all want the same two of four
    layout = model.Model(layers=1, width=8, heads=1, hidden=16, experts=4)
    params = jax.tree.map(lambda p: p[0], model.start(layout, jax.random.key(0))["blocks"])
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    y, _ = jax.jit(lambda params, x: model.mixture(layout, lambda x, *_: x, params, x))(params, x)

    experts = {name: np.asarray(leaf["kernel"]) for name, leaf in params["experts"].items()}
    odds = np.asarray(jax.nn.softmax(x @ params["router"]["kernel"]))
    gate, up = (np.einsum("bsd,edf->bsef", x, experts[name]) for name in ("gate", "up"))
    every = np.einsum("bsef,efd->bsed", gate / (1 + np.exp(-gate)) * up, experts["down"])
    weights = np.where(odds >= np.sort(odds)[..., -2:-1], odds, 0)
    expected = np.einsum("bsed,bse->bsd", every, weights / weights.sum(-1, keepdims=True))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


def test_every_process_reads_its_rows_of_the_same_batches(pod):
    text = np.random.default_rng(0).integers(0, 256, 16 * 100 + 1).astype(np.uint8)
    samples = pod.windows(text, 16).seed(3).shuffle().repeat()
    whole = np.stack(list(pod.batches(samples, range(8), 8, 25)))
    parts = [np.stack(list(pod.batches(samples, rows, 8, 25))) for rows in ([0, 1, 2], [3], [4, 5, 6, 7])]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert whole.shape == (25, 8, 17)
    first, second = whole.reshape(2, 100, 17)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))  # two epochs,
    assert len(np.unique(first, axis=0)) == 100 and np.any(
        first != second
    )  # each of all pieces, in an order of its own


# ------------------------------------------------------------------------------------------------- checkpoints


def interrupted(whole: Path, folder: Path, step: int) -> Path:
    """What a run would have left, had it been killed after its checkpoint of this step."""
    shutil.copytree(whole / "checkpoints" / str(step), folder / "checkpoints" / str(step))
    shutil.copy(whole / "curve.jsonl", folder / "curve.jsonl")
    return folder


def test_resumed_equals_uninterrupted(pod, book, whole, tmp_path):
    out = interrupted(whole, tmp_path, 4)
    assert pod.main([*RUN.split(), "--text", book, "--out", str(out), "--resume"]) == 0
    assert records((out / "curve.jsonl").read_text()) == records((whole / "curve.jsonl").read_text())
    result, expected = (json.loads((folder / "result-6.json").read_text()) for folder in (out, whole))
    assert result["validation_bits_per_byte"] == expected["validation_bits_per_byte"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("", "holds a run: add --resume"),
        ("--resume --layers 3", "params/blocks/attention/key/kernel ((2, 32, 32) there, (3, 32, 32) here)"),
        ("--resume --heads 2", "with another heads (4 there, 2 here): give"),
        ("--resume --optimizer adamw", "optimizer (muon there, adamw here)"),
        ("--resume --batch-size 16", "batch_size (8 there, 16 here)"),
        ("--resume --steps 5", "has reached step 6: give --steps 6 or more"),
    ],
)
def test_folder_of_another_run_is_refused_and_unchanged(pod, book, whole, change, said, capsys):
    before = contents(whole)
    capsys.readouterr()
    assert pod.main([*RUN.split(), "--text", book, "--out", str(whole), *change.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("train.py: ") and said in error, error
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--fsdp 3", "is not the number of devices, 8"),
        ("--batch-size 12", "--batch-size 12 is not a multiple of data x fsdp x expert = 8: give 16"),
        ("--fsdp 1 --tensor 8", "--heads 4 is not a multiple of --tensor 8"),
        ("--width 36 --heads 2", "blocks/attention/key/kernel (2, 36, 36) cannot be divided as"),
        ("--experts 3 --expert 2", "--experts 3 is not a multiple of --expert 2"),
        ("--optimizer nothing", "--optimizer nothing is none of momentax or optax"),
        ("--optimizer lbfgs", "--optimizer lbfgs cannot train this model from its gradients alone"),
        ("--optimizer retract_to_sphere", "--optimizer retract_to_sphere cannot train this model"),
        ('--optimizer-arguments {"beta":1}', "does not take these arguments"),
        ("--optimizer-arguments x", "--optimizer-arguments x is no JSON object"),
        ("--optimizer-arguments [1]", "--optimizer-arguments [1] is no JSON object"),
        ("--attention cudnn", "--attention cudnn cannot be used here"),
        ("--text nowhere", "--text nowhere is no file"),
        ("--steps 0", "--steps 0 is too small"),
        ("--learning-rate nan", "--learning-rate nan is too small"),
        ("--coordinator localhost:1", "give all three, or --distributed alone"),
        ("--coordinator localhost:1 --processes 2 --process 2", "--process 2 is none of --processes 2"),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(pod, book, flags, said, capsys):
    assert pod.main([*SIZES.split(), "--text", book, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("train.py: ") and said in error, error


def test_folder_that_is_no_run_is_refused(pod, book, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert pod.main([*RUN.split(), "--text", book, "--out", str(tmp_path), "--resume"]) == 2
    assert "holds files, but no run of this program" in capsys.readouterr().err
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_file_as_folder_is_refused_and_unchanged(pod, book, tmp_path, capsys):
    file = tmp_path / "thesis.txt"
    file.write_text("mine")
    assert pod.main([*RUN.split(), "--text", book, "--out", str(file)]) == 2
    assert f"--out {file} cannot be used" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize("damaged", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_damaged_checkpoint_is_no_other_run(pod, book, whole, tmp_path, damaged, capsys):
    out = interrupted(whole, tmp_path, 4)
    file = out / "checkpoints" / "4" / damaged
    file.write_bytes(file.read_bytes()[:100])
    before = contents(out)
    assert pod.main([*RUN.split(), "--text", book, "--out", str(out), "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint, of step 4, that cannot be read" in error, error
    assert f"delete the folder {out / 'checkpoints' / '4'}" in error and contents(out) == before


def test_one_process_that_is_told_to_stop_saves(pod, book, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pod.multihost_utils, "reached_preemption_sync_point", lambda step: step == 2)
    flags = [*RUN.split(), "--text", book, "--checkpoint-every", "100"]
    assert pod.main([*flags, "--out", str(tmp_path)]) == 143
    assert "told to stop after step 3; the same command with --resume goes on" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert pod.main(flags) == 143
    assert "told to stop after step 3; nothing is kept without --out" in capsys.readouterr().err


def test_result_from_before_is_kept_and_named(pod, book, whole, tmp_path, capsys):
    out = interrupted(whole, tmp_path, 6)
    (out / "result-6.json").write_text("mine")
    assert pod.main([*RUN.split(), "--text", book, "--out", str(out), "--resume"]) == 0
    assert f"{out / 'result-6.json'} is there from before" in capsys.readouterr().err
    assert (out / "result-6.json").read_text() == "mine"


def test_text_is_known_by_all_of_it_or_by_blocks_of_every_part(pod):
    args = pod.parse(SIZES.split())
    text = np.zeros(2**21, np.uint8)
    before = pod.identify(args, text)
    text[-1] = 1
    assert pod.identify(args, text)["text_sha256"] != before["text_sha256"]


def test_learning_rate_zero_is_zero(pod):
    args = pod.parse([*SIZES.split(), *"--optimizer optax.sgd --learning-rate 0 --warmup 0".split()])
    mesh = pod.make_mesh(args, jax.devices())
    params = {"w": np.ones(2, np.float32)}
    tx = pod.make_optimizer(args, mesh, None)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0)


def test_lines_are_json_where_the_loss_is_none(pod, book, capsys):
    flags = "--steps 30 --warmup 0 --optimizer optax.sgd --learning-rate 1e30 --log-every 1".split()
    assert pod.main([*SIZES.split(), "--text", book, *flags]) == 2
    printed = capsys.readouterr()
    assert "lower --learning-rate" in printed.err and '"loss": null' in printed.out and "NaN" not in printed.out


# ------------------------------------------------------------------------------------------------ ahead of time


def test_compiled_for_a_pod_or_how_to_get_the_compiler():
    flags = "--aot v5e:2x2 --layers 5 --width 256 --heads 4 --hidden 256 --batch-size 8 --sequence 128".split()
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "train.py"), *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if importlib.util.find_spec("libtpu") is None:
        assert ended.returncode == 2 and 'pip install -e ".[tpu-aot]"' in ended.stderr
        return
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = {line.split("  ")[0]: line.split()[-4:] for line in ended.stdout.splitlines()}
    total, own, share, _ = rows["FLOPs of products"]
    total, own, percent = 1e12 * float(total), 1e12 * float(own), float(share.rstrip("%"))
    matrices, chips = 5 * 7, 4  # of 256 x 256, those of all layers
    most = 7 + 3  # that a chip is dealt: of the 25 divided by rows, of the 10 divided by columns
    assert own == pytest.approx(most * 5 * 6 * 256**3, rel=1e-3)  # five iterations of three products
    products = 8 * matrices * 256**2 * 8 * 128 / chips  # forward, again, and twice as much backward
    assert 1 < (total - own) / products < 1.15  # attention and the head
    assert percent == pytest.approx(100 * own / total, abs=0.1)
    assert {"memory, temporary", "all collectives"} <= rows.keys()


# ------------------------------------------------------------------------------------------------ two processes

# Kills process 1 when it writes its part of a checkpoint.
SUICIDE = """
import os, runpy, signal, sys
def hook(name, arguments):
    if name == "open" and "4.orbax-checkpoint-tmp" in str(arguments[0]) and "process_1" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_pair(flags: list[str], folder: Path, *before: str, after: tuple[str, ...] = ()) -> list[subprocess.Popen]:
    """Two processes of four devices each; for the second, `before` stands before the program, `after` behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    pair = []
    for process in (0, 1):
        command = [sys.executable, *(before if process else ()), str(FOLDER / "train.py"), *flags]
        command += after if process else ()
        command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process)]
        with (folder / f"out{process}").open("w") as out, (folder / f"err{process}").open("w") as err:
            pair.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
    return pair


def end_pair(pair: list[subprocess.Popen], folder: Path, expected: int) -> dict[int, float]:
    """Waits for both, which end as expected; where the second is killed, ends the first; its losses."""
    try:
        codes = {pair[1].wait(timeout=120)}
        if expected >= 0:
            codes.add(pair[0].wait(timeout=60))
    finally:
        for process in pair:
            process.kill()  # a scheduler does as much; SIGTERM would ask for one more checkpoint
            process.wait()
    errors = "".join((folder / f"err{process}").read_text()[-2000:] for process in (0, 1))
    assert codes == {expected}, f"ended with {codes}: {errors}"
    return records((folder / "out0").read_text())


def test_processes_that_differ_refuse_to_start(pod, book, tmp_path):
    flags = [*RUN.split(), "--text", book, "--out", str(tmp_path / "run")]
    assert not end_pair(start_pair(flags, tmp_path, after=("--learning-rate", "0.5")), tmp_path, 2)
    assert not (tmp_path / "run").exists()
    assert all("differ in their flags or" in (tmp_path / f"err{process}").read_text() for process in (0, 1))


def test_two_processes_killed_in_a_save_and_restarted_equal_one(book, whole, tmp_path):
    out = tmp_path / "run"
    flags = [*RUN.split(), "--text", book, "--out", str(out)]
    first = end_pair(start_pair(flags, tmp_path, "-c", SUICIDE), tmp_path, -signal.SIGKILL)
    assert list(first)[:4] == [1, 2, 3, 4]
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert "2" in names and "4" not in names and any(name.startswith("4.") for name in names)

    second = end_pair(start_pair([*flags, "--resume"], tmp_path), tmp_path, 0)
    assert list(second) == [3, 4, 5, 6]  # from the last good checkpoint
    assert [second[3], second[4]] == [first[3], first[4]]  # again, bit by bit
    one, two = (records((folder / "curve.jsonl").read_text()) for folder in (whole, out))
    assert list(two) == list(one)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)  # float32
    assert json.loads((out / "result-6.json").read_text())["processes"] == 2
