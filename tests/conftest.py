"""What all tests share: an offline, quiet environment, and one local Ray for those that need it.

The environment is set here, before anything imports Ray, Transformers or MLflow; Ray's worker processes inherit it.
"""

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "agg",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",  # tiny tensors: threads cost more than they give, and two workers share the machine
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AUTH_MODE": "disabled",  # otherwise Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise what workers print appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report() waits for one poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a run, for clouds that take machines away
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",  # otherwise a request that cannot be met is retried for ever
}
os.environ.pop("RAY_ADDRESS", None)  # never join a cluster that happens to run here
os.environ.pop("MLFLOW_TRACKING_URI", None)  # nor write into a store that somebody uses

import pytest
from buckets import ENVIRONMENT, bucket, storage_servers  # noqa: F401  fixtures of all tests
from hypothesis import settings

os.environ |= ENVIRONMENT  # storage that tests start where they need it

# Property tests: random examples here, the same ones every time in continuous integration (`.ci/run` sets CI).
settings.register_profile("tests", max_examples=60, deadline=None, database=None, derandomize="CI" in os.environ)
settings.load_profile("tests")

# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without garbage collections, and keep what was imported out of later ones: they cost a tenth each."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """Commands set the level of their own log for the rest of their process; here it is set back."""
    log = logging.getLogger("lingu_ray")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture(scope="session")
def warm_workers() -> Iterator[Path]:
    """A process whose forks are Ray's workers (`warm_workers.py`); the folder that its socket is in."""
    import warm_workers

    # Short, and not under pytest's tmp_path: socket paths must stay below 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    with warm_workers.server(folder):
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(warm_workers: Path) -> Iterator[str]:
    """A local Ray of two CPUs, started once for all tests that name it; the address for commands that join it."""
    import ray
    from warm_workers import installed

    with installed():
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=True, _temp_dir=str(warm_workers))
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def empty_store(pytestconfig: pytest.Config) -> Path:
    """The database of an MLflow store without runs, to be copied: MLflow needs seconds to make one."""
    import mlflow

    assert pytestconfig.cache is not None
    path = pytestconfig.cache.mkdir("mlflow") / f"{mlflow.__version__}.db"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments()
        temporary.rename(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair and its data on disk."""
    from tinyrun import write_pair_and_data

    folder = tmp_path_factory.mktemp("data")
    write_pair_and_data(folder)
    return folder
