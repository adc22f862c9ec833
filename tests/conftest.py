"""Eight virtual devices, no silent broadcasting between ranks, and a compilation cache that outlives the run."""

import itertools

import jax

DONE = itertools.count(1)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        action="append",
        default=[],
        metavar="DIR",
        help="also replay the golden trajectories of this folder (may be given several times)",
    )


def pytest_configure(config):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # Compiling is most of the time: machine code need not be fast to be right. What XLA does to programs stays.
    jax.config.update("jax_disable_most_optimizations", True)
    # Git ignores it; with it the second run takes a fraction of the first.
    jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_runtest_teardown():
    """Linux gives a process 65,530 memory maps; compiled programs hold several each, and without them XLA crashes."""
    if next(DONE) % 200 == 0:
        jax.clear_caches()
