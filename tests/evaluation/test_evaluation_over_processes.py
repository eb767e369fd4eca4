"""Several processes share the work, and get what one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from processes import in_processes

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, SSLViewsModel
from ssl_views.data.sources import load_images
from ssl_views.evaluation.feature_cache import FeatureCache
from ssl_views.evaluation.feature_sets import labelled_features
from ssl_views.evaluation.features import Extraction, FeatureProtocol
from ssl_views.evaluation.probe import probe_metrics
from ssl_views.statistics import gather_rows

LAUNCHER = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def new_config():
    torch.manual_seed(0)
    return SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_channels=1, num_views=2, recipe="digits"
    )


def sets():
    digits = load_images("digits")
    test = digits.select(range(100, 161))
    damaged = test.map(
        lambda row, i: {"image": {"bytes": b"", "path": None}} if i in (0, 40) else row,
        with_indices=True,
        load_from_cache_file=False,
        new_fingerprint="damaged",
    )
    return digits.select(range(100)), damaged


def check_gathered_rows(rank, world_size):
    """Process r has r rows of r."""
    expected = [[r, r] for r in range(world_size) for _ in range(r)]
    rows = torch.full((rank, 2), rank)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        found = gather_rows(rows.to(dtype))
        assert found.dtype == dtype
        assert found.tolist() == expected
    assert gather_rows(rows[:, 0] > 0).tolist() == [True] * len(expected)
    assert gather_rows(torch.empty(0, 5)).shape == (0, 5)


def measure(rank, world_size, folder):
    torch.set_num_threads(1)
    model = SSLViewsModel(new_config())
    counted = []
    extraction = Extraction(16, on_batch=counted.append)
    found = []
    for protocol in (FeatureProtocol(), FeatureProtocol(3, "bfloat16")):
        features = labelled_features(model, *sets(), protocol=protocol, extraction=extraction)
        found.append((features.train, features.test, features.test_labels, features.test_places))
    assert sum(counted) == 2 * (100 + 59)
    kept = [labelled_features(model, *sets(), cache=FeatureCache(folder)).train for _ in range(2)]
    assert torch.equal(*kept)
    metrics = probe_metrics(model, *sets(), extraction=extraction)
    few = labelled_features(model, sets()[0].select(range(3)), sets()[1].select(range(1, 3)))
    check_gathered_rows(rank, world_size)
    return found, metrics, few.train


@pytest.fixture
def one_thread():
    """A sum over more threads is rounded otherwise."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("several", [2, 4])
@pytest.mark.usefixtures("one_thread")
def test_processes_change_no_metric(tmp_path, several):
    expected, metrics, few = measure(0, 1, tmp_path / "alone")
    results = in_processes(measure, several, tmp_path, str(tmp_path / "features"))
    assert set(metrics) >= {"knn", "effective_rank", "alpha", "lidar", "view_invariance"}
    for found, again, own in results:
        assert again == metrics
        assert torch.equal(own, few)
        for mine, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.slow
def test_a_run_of_two_processes_is_compared_with_its_start(tmp_path):
    """All processes extract the features of the table, and of evaluations."""
    words = ["pretrain", "--backbone", "test_resnet", "--max_steps", "4", "--eval_steps", "2"]
    words += ["--per_device_train_batch_size", "16", "--num_views", "2", "--projector_dim", "8"]
    words += ["--output_dir", str(tmp_path / "run"), "--ddp_timeout", "120"]
    result = subprocess.run(
        [sys.executable, "-m", *LAUNCHER, "ssl_views", *words],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained backbone") == 2  # untrained and trained, once each
    assert "step 4: loss" in result.stdout + result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["untrained backbone"]["knn"] > 0.5


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    SSLViewsForPreTraining(new_config()).save_pretrained(tmp_path / "run")
    words = ["ssl_views", "evaluate", str(tmp_path / "run"), "--dataset", "digits"]
    words += ["--feature_cache", "none", "--report", "false"]
    said, written = [], []
    for start in ([], LAUNCHER):
        result = subprocess.run(
            [sys.executable, "-m", *start, *words],
            env=ENVIRONMENT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.append(result.stdout)
        written.append(json.loads((tmp_path / "run" / "evaluation.json").read_text()))
    assert said[0] == said[1]
    assert written[0] == written[1]
    assert written[0]["knn"] > 0.5
