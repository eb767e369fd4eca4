"""Claims are looked for where the studies have them, and verdicts follow their rule."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_views.sweep.results import RunResult
from ssl_views.sweep.study import Study

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("reproduction_tables")
    sys.modules.pop("reproduction_tables")


def runs_of(study, value=lambda run: 0.4):
    """Results of all runs of a study, whose curves rise to a value."""
    found = []
    for run in study.runs:
        last = value(run)
        curve = {
            "step": [0, 1, 2, 3], "epoch": [0.0, 1.0, 2.0, 3.0], "images_seen": [0, 1, 2, 3],
            "train_seconds": [0.0, 10.0, 20.0, 30.0], "knn": [0.1, last - 0.1, last - 0.05, last],
        }  # fmt: skip
        settings = dict(run.settings)
        found.append(RunResult(run.key, run.name, settings, "finished", curve=curve))
    return found


def evidence(tables, preset, value=lambda run: 0.4):
    found = tables.Evidence(preset)
    for name in ("num_views", "projector_dim", "fraction", "reference_formula"):
        path = ROOT / "examples" / "studies" / f"{name}_{preset}.yaml"
        found.studies[name] = runs_of(Study.read(path, {"dataset": "digits"}), value)
    return found


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_every_group_of_a_claim_is_one_of_a_study(tables, preset):
    found = evidence(tables, preset)
    groups = [
        *(group for loss in tables.NAMES for group in tables.projector_groups(found, loss)),
        *tables.view_groups(found).values(),
        *tables.fraction_groups(found).values(),
        *(group for pair in tables.formula_groups(found).values() for group in pair),
    ]
    assert all(group is not None and len(group.runs) == 3 for group in groups)
    assert len({group.name for group in groups}) > len(groups) / 2


def test_verdicts(tables):
    def verdict(gains, bound):
        rng = np.random.default_rng(0)
        value = {seed: 0.4 + 0.001 * rng.normal() for seed in range(3)}

        def rise(run):
            gain = gains[run.flags["seed"]] if run.flags["num_views"] == 4 else 0.0
            return value[run.flags["seed"]] + gain

        found = evidence(tables, "cpu", rise)
        groups = tables.view_groups(found)
        found.studies["num_views"] = groups[64, 4].runs + groups[64, 2].runs  # the paired t-test
        return tables._difference(
            found, "num_views", (groups[64, 4], groups[64, 2]), "epoch", bound
        )

    assert verdict([0.02, 0.021, 0.019], 0) == ("+2.0 ± 0.2 points", "holds")
    assert verdict([0.02, 0.03, -0.02], 0)[1] == "not decided, mean for it"
    assert verdict([-0.02, -0.03, 0.02], 0)[1] == "not decided, mean against it"
    assert verdict([-0.02, -0.021, -0.019], 0)[1] == "does not hold here"
    assert verdict([-0.002, -0.003, -0.0025], -0.01)[1] == "holds"
    assert tables._difference(None, "num_views", (None, None), "epoch", 0) == ("-", "not run yet")


def test_shares_of_time(tables):
    def share(gain, bound):
        def rise(run):
            return 0.4 + 0.001 * run.flags["seed"] + (gain if run.flags["num_views"] == 4 else 0)

        groups = tables.view_groups(evidence(tables, "cpu", rise))
        return tables._share_of_time(groups[64, 4], groups[64, 2], bound)

    # Four views rise by 0.05 in the last 10 of 30 seconds, and are 0.05 above: 20 of 30 seconds.
    assert share(0.05, 0.7) == ("67 % (67 to 67) of the time", "holds")
    assert share(0.05, 0.6) == ("67 % (67 to 67) of the time", "holds weaker")
    assert share(0.0, 0.7) == ("100 % (100 to 100) of the time", "does not hold here")
    assert share(-0.05, 0.7) == ("its mean does not reach it", "not decided, mean against it")


def test_a_claim_about_the_best_needs_all_of_them(tables):
    def figures():
        return {text: figure for text, figure, _ in tables._projector_claims(found)}

    found = evidence(tables, "cpu")
    assert "-" not in figures().values()
    wide = {"projector_dim": 1024, "loss": "vicreg", "orthogonality_weight": "0.4/D"}
    found.studies["projector_dim"] = [
        run
        for run in found.studies["projector_dim"]
        if not wide.items() <= dict(run.settings).items()
    ]
    lacking = [text for text, figure in figures().items() if figure == "-"]
    assert len(lacking) == 2
    assert all(text.startswith("VICReg") and "the best D = 1024" in text for text in lacking)


def test_spreads_are_pooled_within_a_loss(tables):
    """A loss that does not scatter would narrow the intervals of the other."""
    rng = np.random.default_rng(0)

    def rise(run):
        return 0.4 if run.flags["loss"] == "vicreg" else 0.4 + 0.01 * rng.normal()

    found = evidence(tables, "cpu", rise)
    tuned, fixed, *_ = tables.projector_groups(found, "barlow_twins")
    figure, _ = tables._difference(found, "projector_dim", (tuned, fixed), "epoch", 0)
    found.studies["projector_dim"] = [
        run for run in found.studies["projector_dim"] if run.settings["loss"] == "barlow_twins"
    ]
    assert tables._difference(found, "projector_dim", (tuned, fixed), "epoch", 0)[0] == figure


def test_plans_from_cut_studies(tables):
    backtest = importlib.import_module("plan_backtest").backtest
    runs = []
    for views in (2, 4):
        for seed in range(3):
            steps = list(range(11))
            knn = [0.3 + 0.02 * views - 0.2 * (step + 1) ** -0.5 + 1e-4 * seed for step in steps]
            curve = {"step": steps, "train_seconds": [10.0 * step for step in steps], "knn": knn}
            settings = {"num_views": views, "seed": seed}
            runs.append(RunResult(f"{views}{seed}", "", settings, "finished", curve=curve))
    half, third = (backtest(runs, "knn", share) for share in (1 / 2, 1 / 3))
    assert (half["share"], third["share"]) == (0.5, 0.4)  # a plan needs four evaluations
    assert half["end_seconds"] == 100
    assert half["groups"]["num_views 4"]["measured"] == pytest.approx(runs[4].curve["knn"][-1])
    assert half["chosen"] == "num_views 4"
    assert half["points_lost"] == 0
    for group in half["groups"].values():
        assert group["low"] <= group["measured"] <= group["high"]


def test_a_stored_study_becomes_a_table(tables, tmp_path, monkeypatch):
    studies = importlib.import_module("studies")
    study = Study.read(ROOT / "examples" / "studies" / "num_views_cpu.yaml", {"dataset": "digits"})
    monkeypatch.setattr(studies, "baseline", lambda flags: 0.35)
    monkeypatch.setattr(studies, "results_of", lambda study, folder: runs_of(study)[:4])
    args = SimpleNamespace(
        dataset="digits", dataset_name="the data", jobs=2, results_dir=tmp_path,
        images_dir=tmp_path / "images",
    )  # fmt: skip
    args.images_dir.mkdir()
    for _ in range(2):  # what it took is added up
        studies.store("num_views_cpu", args, tmp_path, seconds=60.0)
    drawn = args.images_dir / "study_num_views_cpu.png"
    first = drawn.read_bytes()
    assert first.startswith(b"\x89PNG")
    drawn.unlink()
    words = ["--draw", "--only", "num_views", "--results_dir", str(tmp_path)]
    assert studies.run_all(studies.parse([*words, "--images_dir", str(args.images_dir)])) == 0
    assert drawn.read_bytes() == first
    stored = json.loads((tmp_path / "study_num_views_cpu.json").read_text())
    assert stored["seconds"] == 120
    assert len(stored["keys"]) == len(study.runs) == 12
    text = "\n".join(tables.study(stored))
    assert "| projector_dim 1024, num_views 2 (reference) | 1 " in text
    assert "Untrained backbones reach 10.0 %, raw pixels 35.0 %. the data; 4 of 12 runs" in text


def test_studies_end_with_75_while_runs_are_left(tables, tmp_path, monkeypatch):
    studies = importlib.import_module("studies")
    codes, stored = {"num_views_cpu": 75, "fraction_cpu": 0}, []

    def main(words):
        code = codes[Path(words[1]).stem]
        if code:
            raise SystemExit(code)
        return 0

    monkeypatch.setattr(studies, "main", main)
    monkeypatch.setattr(studies, "store", lambda name, *rest: stored.append(name))
    only = ["--only", "num_views", "fraction"]
    assert studies.run_all(studies.parse(only)) == 75
    assert stored == ["num_views_cpu", "fraction_cpu"]
    codes["num_views_cpu"] = 0
    assert studies.run_all(studies.parse(only)) == 0
    assert studies.run_all(studies.parse([*only, "--minutes", "-1"])) == 75
    codes["num_views_cpu"] = 1  # with runs that have failed: others are run all the same
    assert studies.run_all(studies.parse(only)) == 1
    assert len(stored) == 6
    codes["num_views_cpu"] = 2
    with pytest.raises(SystemExit, match="2"):
        studies.run_all(studies.parse(only))
