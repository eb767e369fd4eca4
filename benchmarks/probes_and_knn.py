"""kNN and linear probe: seconds, memory, and how far from references in float64.

The references are another implementation each: kNN by brute force in NumPy, and scikit-learn's
LogisticRegression, converged, of the same standardized features with the weight decay that ours
chose. Ours run in a process of their own, because the peak of a process that has done other work
says nothing. Called by benchmarks/evaluation.py.
"""

import multiprocessing
import os
import re
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ssl_views.evaluation.knn import knn_predictions, nearest_neighbours
from ssl_views.evaluation.linear_probe import fit_linear_probe

NUM_THREADS = 2
ROUNDS = 3
K, TEMPERATURE = 20, 0.1
TOLERANCE = 1e-7  # scikit-learn's, of the largest gradient
_CHUNK = 500


def measure(train, train_labels, test, test_labels):
    """Return, for kNN and linear probe, what ours and the reference cost and find.

    Args:
        train: (N, D) float32.
        train_labels: (N,) int64.
        test: (M, D) float32.
        test_labels: (M,) int64.
    """
    load = os.getloadavg()[0]
    parts = train, train_labels, test, test_labels
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.pt"
        torch.save(parts, file)
        ours = {name: _in_child(name, file) for name in ("knn", "linear_probe")}
    weight_decay = ours["linear_probe"]["weight_decay"]
    references = {
        "knn": _brute_force(*parts[:3]),
        "linear_probe": _scikit_learn(*parts[:3], weight_decay),
    }
    result = {
        "num_train": len(train),
        "num_test": len(test),
        "feature_dim": train.shape[1],
        "num_classes": len(train_labels.unique()),
        "threads": NUM_THREADS,
        "rounds": ROUNDS,
        "load_before": load,
    }
    for name, reference in references.items():
        found, expected = ours[name].pop("predicted"), reference.pop("predicted")
        for part, predicted in ((ours[name], found), (reference, expected)):
            part["accuracy"] = float((predicted == test_labels).double().mean())
        result[name] = {
            "ours": ours[name],
            "reference": reference,
            "points_apart": 100 * abs(ours[name]["accuracy"] - reference["accuracy"]),
            "same_predictions": float((found == expected).double().mean()),
        }
    return result


def _knn(train, train_labels, test):
    neighbours = nearest_neighbours(train, test, k=K)
    return knn_predictions(neighbours, train_labels, temperature=TEMPERATURE), {}


def _linear_probe(train, train_labels, test):
    probe = fit_linear_probe(train, train_labels)
    return probe.predict(test), {"weight_decay": probe.weight_decay}


def _kilobytes(field):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def _child(name, file, pipe):
    torch.set_num_threads(NUM_THREADS)
    train, train_labels, test, _ = torch.load(file)
    function = {"knn": _knn, "linear_probe": _linear_probe}[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _kilobytes("VmRSS")
    times, cpu_times = [], []
    for _ in range(ROUNDS):
        start, cpu_start = time.perf_counter(), time.process_time()
        predicted, more = function(train, train_labels, test)
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    peak = _kilobytes("VmHWM")
    pipe.send(
        {
            "seconds": median(times),
            "seconds_of_rounds": times,
            "cpu_seconds": median(cpu_times),
            "peak_mib_in_all": peak / 1024,
            "peak_mib_beside_features": (peak - before) / 1024,
            **more,
            "predicted": predicted.tolist(),
        }
    )


def _in_child(name, file):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, file, sender))
    process.start()
    sender.close()  # or a child that died would be waited for
    result = receiver.recv()
    process.join()
    return {**result, "predicted": torch.tensor(result["predicted"])}


def _brute_force(train, train_labels, test):
    """Vote in float64, one chunk of test images at a time."""
    start = time.perf_counter()
    train, test = (x.double().numpy() for x in (train, test))
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    test = test / np.linalg.norm(test, axis=1, keepdims=True)
    labels = train_labels.numpy()
    predicted = []
    for first in range(0, len(test), _CHUNK):
        similarity = test[first : first + _CHUNK] @ train.T
        nearest = np.argpartition(-similarity, K, axis=1)[:, :K]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)
        votes = np.zeros((len(similarity), labels.max() + 1))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[nearest]), weights)
        predicted.append(votes.argmax(axis=1))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "predicted": torch.as_tensor(np.concatenate(predicted))}


def _scikit_learn(train, train_labels, test, weight_decay):
    """Fit one weight decay: the choice of it is not in the time."""
    train, test = train.double(), test.double()
    std, mean = torch.std_mean(train, dim=0)
    std = std.where(std > 1e-6 * mean.abs(), torch.inf)
    model = LogisticRegression(C=1 / (weight_decay * len(train)), tol=TOLERANCE, max_iter=100_000)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit(((train - mean) / std).numpy(), train_labels.numpy())
    return {
        "seconds": time.perf_counter() - start,
        "tolerance": TOLERANCE,
        "iterations": int(model.n_iter_.max()),
        "predicted": torch.as_tensor(model.predict(((test - mean) / std).numpy())),
    }
