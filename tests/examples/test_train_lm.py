"""The training program: exact resume, nothing lost, clear refusals, one picture of several optimizers."""

import fcntl
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

PROGRAM = Path(__file__).parents[2] / "examples" / "train_lm.py"
MODEL = "--width 16 --depth 1 --heads 2 --sequence 16 --batch 4 --sample 20".split()
SHORT = [*MODEL, *"--steps 12 --checkpoint-every 5 --eval-every 4".split()]

spec = importlib.util.spec_from_file_location("train_lm", PROGRAM)
train_lm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_lm)


@pytest.fixture(scope="module", autouse=True)
def ordinary_broadcasting():
    """The library is strict about ranks; a program adds positions to a batch as everyone does."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    """20 kB of words in random order: much to learn beyond the frequencies of the letters."""
    path = tmp_path_factory.mktemp("data") / "book.txt"
    words = random.Random(0).choices(["momentum ", "carries ", "the ", "past ", "into ", "café\n"], k=3500)
    path.write_text("".join(words), encoding="utf-8")
    return str(path)


def losses(out: Path) -> list[tuple]:
    """All that a run's log says except the seconds, which no two runs share."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["bits_per_byte"], r.get(train_lm.VALIDATION)) for r in records]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def sentence(capsys) -> str:
    """The one line on stderr."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("train_lm.py: "), error
    return error


# Kills the process at the n-th event whose first argument contains a given text: inside a save, not near one.
SUICIDE = """
import os, runpy, signal, sys
event, needle, count = {event!r}, {needle!r}, {count}
def hook(name, arguments):
    global count
    if name == event and needle in str(arguments[0]):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def run_process(book):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    flags = "--steps 30 --checkpoint-every 4 --eval-every 5 --optimizer am_adamw --spikes 0.1 --data"
    flags = [*MODEL, *flags.split(), book]

    def run(out: Path, *before: str, expected: int) -> str:
        command = [sys.executable, *before, str(PROGRAM), *flags, "--out", str(out)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == expected, f"{before} ended with {ended.returncode}: {ended.stderr[-2000:]}"
        return ended.stdout

    return run


def test_killed_anywhere_and_resumed_equals_uninterrupted(run_process, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_process(whole, expected=0)
    killed.mkdir()
    (killed / "config.json.partial").write_text('{"optimi')  # what a kill leaves while a folder is being claimed
    moments = [  # where it dies, and the step the next one must find
        ("os.rename", "checkpoints/8.orbax-checkpoint-tmp", 1, 4),  # half a checkpoint is written
        ("os.rename", "metrics.jsonl", 1, 4),  # the log is being cut back to step 4
        ("os.rename", "checkpoints/12.orbax-checkpoint-tmp", 2, 8),  # a whole checkpoint awaits its name
        ("os.mkdir", "checkpoints/20.orbax-checkpoint-tmp", 1, 16),  # the log is ahead of the checkpoints
        ("os.rmdir", "checkpoints/12", 1, 20),  # an old checkpoint is half deleted
    ]
    resumes = ""
    for event, needle, count, found in moments:
        script = SUICIDE.format(event=event, needle=needle, count=count)
        assert resumes in run_process(killed, "-c", script, expected=-signal.SIGKILL)
        resumes = f"resumes after step {found}"
    assert resumes in run_process(killed, expected=0)

    assert len(losses(whole)) == 30
    assert losses(killed) == losses(whole)
    assert (killed / "sample.txt").read_bytes() == (whole / "sample.txt").read_bytes()


def test_interrupt_saves_and_resumes_exactly(book, tmp_path, capsys, monkeypatch):
    flags = [*SHORT, "--data", book, "--out"]
    assert train_lm.main([*flags, str(tmp_path / "whole")]) == 0

    class Interrupted(train_lm.tqdm):
        def update(self, n=1):
            if self.n + n == 7:
                signal.raise_signal(signal.SIGINT)
            return super().update(n)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(train_lm, "tqdm", Interrupted)
        assert train_lm.main([*flags, str(out)]) == 130
    assert "the same command again resumes" in capsys.readouterr().err
    assert len(losses(out)) == 7
    with (out / "metrics.jsonl").open("a") as log:
        log.write('{"step": 8, "bits_per_byte": 1.0, "seconds": 1.0}\n{"step": 9, "bits_pe')  # what a kill leaves

    assert train_lm.main([*flags, str(out)]) == 0
    assert "resumes after step 7" in capsys.readouterr().out
    assert losses(out) == losses(tmp_path / "whole")


def test_finished_run_is_not_repeated(book, tmp_path, capsys, monkeypatch):
    flags = [*SHORT, "--data", book, "--out", str(tmp_path / "run")]
    assert train_lm.main(flags) == 0
    first = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(train_lm, "make_steps", None)
    assert train_lm.main(flags) == 0
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--seed 1", "seed (0 there, 1 here)"),
        ("--width 32", "width (16 there, 32 here)"),
        ("--optimizer adamw", "optimizer (adamp there, adamw here)"),
        ("--learning-rate 0.5", "learning_rate (0.003 there, 0.5 here)"),
        ("--steps 13", "steps (12 there, 13 here)"),
        ("--spikes 0.5", "spikes (None there, 0.5 here)"),
        ("--compare adamp,adamw", "optimizer (adamp there, compare here)"),
        ("--data {other}", "data ("),
    ],
)
def test_folder_of_another_configuration_is_refused_and_unchanged(change, named, finished, book, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("another text " * 100)
    change = change.format(other=tmp_path / "other.txt").split()
    before = contents(finished)
    capsys.readouterr()
    assert train_lm.main([*SHORT, "--data", book, "--out", str(finished), *change]) == 2
    assert named in sentence(capsys)
    assert contents(finished) == before


@pytest.fixture(scope="module")
def finished(book, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train_lm.main([*SHORT, "--data", book, "--out", str(out)]) == 0
    return out


def test_folder_of_something_else_is_refused_and_unchanged(book, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    assert train_lm.main([*SHORT, "--data", book, "--out", str(tmp_path)]) == 2
    assert "no run of this program" in sentence(capsys)
    assert train_lm.main([*SHORT, "--data", book, "--out", str(tmp_path / "thesis.tex")]) == 2
    assert "cannot hold a run" in sentence(capsys)
    assert contents(tmp_path) == before


def test_second_process_in_the_same_folder_is_refused(finished, book, capsys):
    with (finished / "config.json").open() as label:
        fcntl.flock(label, fcntl.LOCK_EX)
        assert train_lm.main([*SHORT, "--data", book, "--out", str(finished)]) == 2
    assert "another process trains" in sentence(capsys)


def test_log_that_lost_records_is_refused(finished, book, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "metrics.jsonl").write_text("")
    before = contents(out)
    capsys.readouterr()
    assert train_lm.main([*SHORT, "--data", book, "--out", str(out)]) == 2
    assert "metrics.jsonl ends before the checkpoint of step 12" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "neither a file nor a folder"),
        (b"", "holds 0 bytes of text"),
        (b"a few words", "holds 11 bytes of text, but --sequence 16 needs 340 or more"),
        (b"\x7fELF\0\0" * 1000, "holds only binary data"),
        ("na\u00efve ".encode("latin-1") * 1000, "holds only binary data"),
        ({}, "holds 0 bytes of text"),
        ({"a.bin": b"\0" * 1000}, "holds only binary data"),
    ],
    ids=["missing", "empty", "tiny", "binary", "not-utf8", "empty-folder", "binary-folder"],
)
def test_bad_data_is_refused_in_one_sentence(content, named, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    if isinstance(content, dict):
        data.mkdir()
        for name, value in content.items():
            (data / name).write_bytes(value)
    elif content is not None:
        data.write_bytes(content)
    assert train_lm.main([*SHORT, "--data", str(data), "--out", str(out)]) == 2
    error = sentence(capsys)
    assert str(data) in error and named in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--optimizer momentumizer", "choose one of adabelief, "),
        ("--compare adamw,momentumizer", "am_adamw, am_sgd, "),
        ("--optimizer sgd --weight-decay 0.1", "sgd has no weight decay"),
        ("--heads 3", "--width 16 is not a multiple of --heads 3"),
        ("--checkpoint-every 0", "--checkpoint-every 0 is too small"),
        ("--learning-rate inf", "--learning-rate inf makes no sense"),
        ("--spikes 1", "--spikes 1.0 makes no sense: give 0 or more, and less than 1"),
        ("--spikes -0.1", "--spikes -0.1 makes no sense"),
        ("--spikes nan", "--spikes nan makes no sense"),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(flags, named, book, tmp_path, capsys):
    assert train_lm.main([*SHORT, "--data", book, "--out", str(tmp_path / "run"), *flags.split()]) == 2
    assert named in sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_diverging_run_says_so_and_keeps_its_last_checkpoint(book, tmp_path, capsys):
    flags = [*SHORT, "--data", book, "--optimizer", "sgd", "--learning-rate", "1e30", "--out", str(tmp_path)]
    assert train_lm.main(flags) == 2
    assert "lower --learning-rate" in capsys.readouterr().err


def test_folder_of_texts_is_read_in_order_without_its_results(tmp_path, capsys):
    (tmp_path / "b.txt").write_text("second" * 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "first.md").write_text("first" * 100)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log.txt").write_text("log")
    text = train_lm.load_text(tmp_path, tmp_path / "runs", sequence=16)
    assert np.concatenate([text.train, text.validation]).tobytes() == b"first" * 100 + b"\n" + b"second" * 100
    assert len(text.validation) == 111
    assert "2 files, 1 others are not UTF-8 text, 1,101 bytes" in capsys.readouterr().out


def test_default_data_is_the_standard_library_without_tests(capsys):
    text = train_lm.load_text(None, Path("runs"), sequence=128)
    both = text.train.tobytes() + text.validation.tobytes()
    assert b"class Fraction(numbers.Rational):" in both
    assert b"class TestCase(object):" in both  # unittest itself is no test
    assert b"class FractionTest(" not in both and b"class IdleConfTest(" not in both
    printed = capsys.readouterr().out
    assert (
        text.sha256 in printed and f"Python {sys.version.split()[0]}" in printed and f"{len(both):,} bytes" in printed
    )


def test_beats_the_unigram_model_and_says_so(book, tmp_path, capsys):
    flags = "--steps 200 --batch 8 --learning-rate 0.01 --eval-every 100 --checkpoint-every 200".split()
    assert train_lm.main([*MODEL, *flags, "--data", book, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    unigram = float(printed.split("unigram")[1].split()[0])
    assert 3 < unigram < 4.5
    assert losses(tmp_path)[-1][2] < 0.6 * unigram  # six words of ~6 letters: about 0.45 bits per byte to find
    assert len((tmp_path / "sample.txt").read_bytes()) == 20


def test_compare_starts_alike_and_draws_one_picture(book, tmp_path, capsys):
    flags = [*SHORT, "--data", book, "--compare", "adamw,adamp,sgd", "--out", str(tmp_path)]
    assert train_lm.main(flags) == 0
    table = capsys.readouterr().out.split("ms/step")[1]
    runs = {name: losses(tmp_path / name) for name in ("adamw", "adamp", "sgd")}
    assert all(name in table and f"{run[-1][2]:.3f}" in table for name, run in runs.items())
    assert len({run[0][1] for run in runs.values()}) == 1  # the same weights and the same first batch
    assert len({run[-1][1] for run in runs.values()}) == 3
    picture = (tmp_path / "adamw-adamp-sgd.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000

    assert train_lm.main(flags) == 0
    assert capsys.readouterr().out.count("is finished") == 3


def test_defaults_are_of_optimizers_that_exist():
    assert train_lm.DEFAULTS.keys() | train_lm.ARGUMENTS.keys() <= train_lm.optimizer_factories().keys()


def test_accumulation_equals_a_larger_batch(book, tmp_path):
    for name, flags in {"large": "--batch 8", "accumulated": "--batch 2 --accumulate 4"}.items():
        flags = [*SHORT, *flags.split(), "--data", book, "--optimizer", "am_sgd", "--learning-rate", "0.1"]
        assert train_lm.main([*flags, "--out", str(tmp_path / name)]) == 0
    large, accumulated = (np.array(losses(tmp_path / name))[:, 1].astype(float) for name in ("large", "accumulated"))
    np.testing.assert_allclose(accumulated, large, rtol=1e-5)
    assert large[0] > large[-1]


def given_to_optimizer(book, tmp_path, *flags):
    """The configuration, the step and, for each step, gradients, `value` and loss; the weights stand still."""

    def update(grads, state, params=None, *, value):
        return jax.tree.map(jnp.zeros_like, grads), {"grads": grads, "value": value}

    def init(params):
        return {"grads": jax.tree.map(jnp.zeros_like, params), "value": jnp.zeros(())}

    config = train_lm.parse([*SHORT, *flags])
    text = train_lm.load_text(Path(book), tmp_path, config.sequence)
    data = jnp.asarray(text.train)
    graphdef, params = train_lm.nnx.split(train_lm.GPT(config, train_lm.nnx.Rngs(0)))
    train_step, _ = train_lm.make_steps(config, graphdef, optax.GradientTransformationExtraArgs(init, update))
    state, given = train_lm.State(params, init(params)), []
    program = train_step.lower(state, data, np.int32(0)).as_text()
    for step in range(config.steps):
        state, loss = train_step(state, data, np.int32(step))
        given.append((jax.device_get(state.opt_state), float(loss)))
    return config, program, given


def test_value_given_to_the_optimizer_is_the_accumulated_loss(book, tmp_path):
    """The mean over the micro-batches, not the last one's."""
    _, _, given = given_to_optimizer(book, tmp_path, "--accumulate", "3")
    assert all(float(state["value"]) == loss for state, loss in given)


def spiked_steps(config) -> list[bool]:
    return [bool(train_lm.spike(config, step)[0]) for step in range(config.steps)]


def test_spikes_are_noise_in_some_steps_and_leave_the_others_alone(book, tmp_path):
    config, program, spiked = given_to_optimizer(book, tmp_path, "--spikes", "0.5")
    _, clean_program, clean = given_to_optimizer(book, tmp_path)
    noises = []
    for comes, (state, loss), (reference, same_loss) in zip(spiked_steps(config), spiked, clean, strict=True):
        assert loss == pytest.approx(same_loss, rel=1e-6)
        grads, plain = jax.tree.leaves(state["grads"]), jax.tree.leaves(reference["grads"])
        noise = [(g - h) / (1000 * np.abs(h).mean()) for g, h in zip(grads, plain, strict=True)]
        if comes:
            assert all(0.2 < n.std() < 2 for n in noise)  # every leaf, of 16 entries or more
            noises.append(np.concatenate([n.ravel() for n in noise]))
        else:
            assert max(np.abs(n).max() for n in noise) < 1e-7
    assert 2 <= len(noises) <= 10
    np.testing.assert_allclose(np.cov(noises), np.eye(len(noises)), atol=0.1)  # 10,000 entries: unit, independent
    assert "erf_inv" in program and "erf_inv" not in clean_program  # what draws normal numbers


def test_run_without_spikes_is_the_one_from_before_they_existed():
    assert "spikes" not in train_lm.identity(train_lm.parse(["--spikes", "0"]))
    assert train_lm.identity(train_lm.parse(["--spikes", "0.25"]))["spikes"] == 0.25


def test_compare_under_spikes_counts_and_marks_them(book, tmp_path, capsys, monkeypatch):
    figures = []
    monkeypatch.setattr(train_lm, "Figure", lambda **looks: figures.append(Figure(**looks)) or figures[0])
    flags = [*SHORT, "--data", book, "--compare", "adamw,adamw_clip", "--spikes", "0.4", "--out", str(tmp_path)]
    assert train_lm.main(flags) == 0
    comes = spiked_steps(train_lm.parse(flags))
    assert f"spikes      in {sum(comes)} of 12 steps, 1000 x" in capsys.readouterr().out
    marks = [segment[0, 0] for segment in figures[0].axes[0].collections[0].get_segments()]
    assert marks == [step for step, comes in enumerate(comes, 1) if comes] != []
    adamw, clipped = losses(tmp_path / "adamw"), losses(tmp_path / "adamw_clip")
    assert adamw[0] == clipped[0] and adamw[-1] != clipped[-1]
