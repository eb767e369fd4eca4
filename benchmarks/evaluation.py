"""Evaluation: time, memory and exactness, what watching a run costs, and known answers.

    python benchmarks/evaluation.py [--dataset PATH_OR_HUB_ID_OF_CIFAR10]

Trains a ResNet-18 (512 features) briefly on the images, so that probes and kNN are measured on real
features, evaluates it, and writes benchmarks/results/evaluation.json. Nothing else should run
meanwhile; it takes about 15 minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from environment import environment
from probes_and_knn import measure

from ssl_views.data.sources import load_train_and_test, take_fraction
from ssl_views.evaluation.feature_cache import FeatureCache
from ssl_views.evaluation.feature_sets import labelled_features
from ssl_views.evaluation.features import Extraction, FeatureProtocol
from ssl_views.evaluation.report import evaluate_features
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.spectrum import effective_rank, eigenspectrum, fit_power_law, lidar

ROOT = Path(__file__).parents[1]
MODEL = (
    "--backbone", "resnet18", "--image_size", "32", "--num_views", "4", "--projector_dim", "256",
    "--recipe_args", '{"crop_scale": [0.25, 1.0]}', "--learning_rate", "2e-3", "--bf16",
    "--per_device_train_batch_size", "256", "--save_strategy", "no",
)  # fmt: skip
AVERAGED = 16


def command(*words, launcher=()):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *launcher, "ssl_views", *words], check=True)
    return time.perf_counter() - start


def pretrain(folder, *words):
    """Train, and return what watching the run has cost."""
    seconds = command("pretrain", *words, "--output_dir", str(folder))
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    spent = sum(entry["eval_runtime"] for entry in evaluated)
    trained = max(entry["train_seconds"] for entry in log if "train_seconds" in entry)
    return {
        "evaluations": len(evaluated),
        "seconds_of_evaluations": spent,
        "seconds_of_training": trained,
        "share": spent / (spent + trained),
        "seconds_of_command": seconds,
    }


def processes(run):
    """Evaluate the same run with one and two processes; return whether all digits agree."""
    words = ["evaluate", str(run), "--feature_cache", "none", "--report", "false"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    os.environ["OMP_NUM_THREADS"] = "1"  # else one process would have more threads than each of two
    found = []
    for start in ((), launcher):
        command(*words, launcher=start)
        found.append(json.loads((run / "evaluation.json").read_text()))
    del os.environ["OMP_NUM_THREADS"]
    return {"same": found[0] == found[1], "metrics": found}


def one_view_or_many(model, rows):
    """Return the metrics of one clean view and of the mean of 16, of the same images."""
    result = {}
    for feature_views in (1, AVERAGED):
        protocol = FeatureProtocol(feature_views, "bfloat16")
        features = labelled_features(model, *rows, protocol=protocol, extraction=Extraction(512))
        metrics = evaluate_features(features)
        result[protocol.name] = metrics.as_dict()
    return result


def extraction(model, rows, folder):
    """Return seconds of extracting features, and of reading them again."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        features = labelled_features(
            model, *rows, extraction=Extraction(512), cache=FeatureCache(folder)
        )
        seconds.append(time.perf_counter() - start)
    return features, dict(zip(("extracting", "reading_again"), seconds, strict=True))


def known_answers():
    """Return what the diagnostics say of matrices whose answer is known."""
    generator = torch.Generator().manual_seed(0)

    def rows(count, variances):
        """Samples of a Gaussian with these variances along random axes."""
        dim = len(variances)
        x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        axes = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        return (x * variances.sqrt() @ torch.linalg.qr(axes).Q).float()

    ranks = torch.arange(1, 513, dtype=torch.float64)
    laws = {
        str(alpha): fit_power_law(eigenspectrum(rows(20_000, ranks**-alpha)))._asdict()
        for alpha in (0.5, 1.0, 1.5, 2.0)
    }
    gaussian = {
        str(dim): effective_rank(rows(40 * dim, torch.ones(dim, dtype=torch.float64)))
        for dim in (16, 64, 256)
    }
    images = rows(1000, torch.ones(64, dtype=torch.float64))
    noise = torch.randn(4, 1000, 64, generator=generator)
    line = images[:, :1].expand(1000, 64)
    return {
        "alpha": laws,
        "effective_rank_of_isotropic_gaussian": gaussian,
        "lidar": {
            "collapsed to a point": lidar(torch.ones(4, 1000, 64)),
            "collapsed to a line": lidar(line + 1e-3 * noise),
            "separated clusters, 64 dimensions": lidar(images + 1e-2 * noise),
        },
    }


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    beside = ROOT.parent / "shared" / "data" / "cifar10"  # where the tests look too
    parser.add_argument("--dataset", default=str(beside) if beside.is_dir() else "uoft-cs/cifar10")
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--max_steps", type=int, default=400)
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "evaluation")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "evaluation.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    run = args.work_dir / "images"
    words = ["--dataset", args.dataset, "--max_steps", str(args.max_steps), *MODEL]
    watching = {args.dataset_name: pretrain(run, *words)}
    watching["digits"] = pretrain(args.work_dir / "digits")
    rows = load_train_and_test(args.dataset)
    model = SSLViewsModel.from_pretrained(run)
    features, seconds = extraction(model, rows, args.work_dir / "features")
    parts = features.train, features.train_labels, features.test, features.test_labels
    some = [take_fraction(part, share) for part, share in zip(rows, (0.1, 0.2), strict=True)]
    result = {
        "what": "evaluation of frozen features: probes, kNN, diagnostics, and what they cost",
        "dataset": args.dataset_name,
        "max_steps": args.max_steps,
        **environment(),
        "seconds_of_features": seconds,
        "probes_and_knn": measure(*parts),
        "watching": watching,
        "processes": processes(args.work_dir / "digits"),
        "one_view_or_many": one_view_or_many(model, some),
        "known_answers": known_answers(),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.output}")
