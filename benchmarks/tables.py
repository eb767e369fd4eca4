"""Write the tables of the documents from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # fail if a table is not that of its JSON
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean, median

from evaluation_tables import evaluation
from export_tables import export_matrix
from fault_tables import faults
from reproduction_tables import claims, plan_backtest, study, views_against_two
from speedrun_tables import speedrun
from theory_tables import theory
from view_tables import loader, views, views_jpeg

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def _percent(values):
    low, high = min(values), max(values)
    spread = f" ({100 * low:.1f}-{100 * high:.1f})" if high > low else ""
    return f"{100 * mean(values):.1f} %{spread}"


def _table(result, names):
    lines = ["| features | kNN | linear probe | effective rank |", "| --- | --- | --- | --- |"]
    for key, name in names.items():
        metrics = [run[key] for run in result["runs"]]
        knn, probe = (_percent([m[metric] for m in metrics]) for metric in ("knn", "linear_probe"))
        rank = mean(m["effective_rank"] for m in metrics)
        dim = min(metrics[0]["feature_dim"], metrics[0]["num_test"])
        lines.append(f"| {name} | {knn} | {probe} | {rank:.1f} of {dim} |")
    return lines


def _footnote(result, more=""):
    metrics = next(value for value in result["runs"][0].values() if isinstance(value, dict))
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", "timm", "transformers"))
    machine = result["machine"]
    seeds = "one seed" if result["n"] == 1 else f"mean (range) of {result['n']} seeds"
    return (
        f"One clean view per image; {metrics['num_train']:,} images to learn from, "
        f"{metrics['num_test']:,} to evaluate; kNN with k = 20, temperature 0.1; {seeds}. "
        f"{more}{machine['cores']} cores of an {machine['processor']}; {versions}."
    )


def main_job(result):
    """Table of the run without arguments."""
    names = ("raw pixels", "untrained backbone", "trained backbone")
    minutes = max(run["seconds"] for run in result["runs"]) / 60
    more = f"At most {minutes:.1f} minutes and {result['peak_bytes'] / 1e9:.1f} GB in all, on "
    return [*_table(result, dict(zip(names, names, strict=True))), "", _footnote(result, more)]


def cifar10_cpu(result):
    """Table of the CIFAR-10 recipe."""
    names = ("raw_pixels", "untrained_backbone", "trained_backbone")
    minutes = max(run["seconds"] for run in result["runs"]) / 60
    more = f"Data: {result['dataset']}. At most {minutes:.1f} minutes in all, on "
    return [*_table(result, {n: n.replace("_", " ") for n in names}), "", _footnote(result, more)]


PAIRS = {  # ours, and the peer's that does the same
    "Barlow Twins, mean of the others": "Barlow Twins",
    "Barlow Twins, all pairs": "Barlow Twins",
    "Barlow Twins, redundancy of the mean": "Barlow Twins",
    "VICReg": "VICReg",
}
PEERS = ("lightly", "solo-learn")


def _number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _ratio(value):
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def _times(milliseconds):
    """Return a line of ratios to the peers, the medians over rounds."""
    cells = []
    for ours, theirs in PAIRS.items():
        rounds = [
            zip(milliseconds[f"{peer} {theirs}"], milliseconds[ours], strict=True)
            for peer in PEERS
            if f"{peer} {theirs}" in milliseconds
        ]
        cells.append(" / ".join(_ratio(median(a / b for a, b in pairs)) for pairs in rounds))
    return cells


def _losses_footnote(result):
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", *PEERS))
    return (
        f"Ratios to {' / '.join(PEERS)}, looped over pairs of views; one thread of an "
        f"{result['machine']['processor']}, float32, medians of {result['rounds']} interleaved "
        f"rounds; {versions}."
    )


def losses(result, shapes=None):
    """Table of the time of the losses."""
    lines = [f"| V, B, D | {' | '.join(PAIRS)} |", "| --- |" + " --- |" * len(PAIRS)]
    for cell in result["cells"]:
        if shapes is None or cell["shape"] in shapes:
            shape = ", ".join(map(str, cell["shape"]))
            lines.append(f"| {shape} | {' | '.join(_times(cell['milliseconds']))} |")
    return [*lines, "", f"Times faster, forward and backward. {_losses_footnote(result)}"]


def losses_short(result):
    """Table of the time of the losses, some of them."""
    return losses(result, ([2, 256, 256], [2, 256, 8192], [4, 256, 1024], [4, 256, 8192]))


def losses_memory(result):
    """Table of the peak memory of the losses."""
    lines = [f"| V, B, D | {' | '.join(PAIRS)} |", "| --- |" + " --- |" * len(PAIRS)]
    for row in result["peak_bytes"]:
        peaks = row["bytes"]
        ratios = [
            " / ".join(_ratio(peaks[f"{peer} {theirs}"] / peaks[ours]) for peer in PEERS)
            + f" ({peaks[ours] / 1e6:.0f} MB)"
            for ours, theirs in PAIRS.items()
        ]
        lines.append(f"| {', '.join(map(str, row['shape']))} | {' | '.join(ratios)} |")
    return [*lines, "", f"Times less, peak above the embeddings. {_losses_footnote(result)}"]


def losses_scaling(result):
    """Table of the time of the losses over the number of views."""
    views = [cell["shape"][0] for cell in result["scaling"]]
    lines = [f"| loss | {' | '.join(f'V = {v}' for v in views)} | exponent |"]
    lines.append("| --- |" + " --- |" * (len(views) + 1))
    for name, exponent in result["exponents"].items():
        times = [median(cell["milliseconds"][name]) for cell in result["scaling"]]
        relative = " | ".join(_ratio(t / times[0]) for t in times)
        lines.append(f"| {name} | {relative} | {exponent:.2f} |")
    _, batch, dim = result["scaling"][0]["shape"]
    return [*lines, "", f"Time relative to V = 2 at B = {batch}, D = {dim}; slope of log on log."]


def losses_over_processes(result):
    """Table of the error of the gradient of two processes."""
    lines = ["| loss | different data | the same data in both |", "| --- | --- | --- |"]
    for name, cases in result["losses"].items():
        cells = [
            f"{case['relative_error']:.1g} (length {case['length']:.2f})"
            for case in (cases["different data"], cases["same data"])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", *PEERS))
    text = (
        "Relative error of the gradient of two processes, and its length (1 is right), against one"
    )
    return [*lines, "", f"{text} with the whole batch; float64, gloo, {versions}."]


def orthogonality_weight(result):
    """Table of the rules behind "auto"."""
    lines = [
        "| loss | best rule | exponent, leaving out one D | points lost | constant at 1/D | "
        "points lost | points lost by auto |",
        "| --- |" + " --- |" * 6,
    ]
    for loss, rule in result["rules"].items():
        low, high = rule["exponent_range_leaving_out_one_dim"]
        lines.append(
            f"| {loss} | {_number(rule['constant'])} / D^{rule['exponent']:.1f} "
            f"| {low:.1f} to {high:.1f} "
            f"| {100 * rule['regret']:.1f} | {_number(rule['constant_at_exponent_1'])} "
            f"| {100 * rule['regret_at_exponent_1']:.1f} | {100 * rule['regret_of_auto']:.1f} |"
        )
    preset, minutes = result["preset"], result["seconds"] / 60
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", "timm"))
    return [
        *lines,
        "",
        "Points of kNN accuracy below the best weight, mean over D and V = 2, 4. "
        f"{result['dataset']}, {preset['num_images']:,} images, {preset['num_steps']} steps of "
        f"{preset['batch_size']} images, {len(preset['seeds'])} seed; {len(result['runs'])} runs "
        f"in {minutes:.0f} minutes on {result['machine']['cores']} cores of an "
        f"{result['machine']['processor']}; {versions}.",
    ]


TABLES = {  # by name: the function, and the JSON it reads, or the first of those it reads
    "main_job": (main_job, "main_job"),
    "cifar10_cpu": (cifar10_cpu, "cifar10_cpu"),
    "losses": (losses, "losses"),
    "losses_short": (losses_short, "losses"),
    "losses_memory": (losses_memory, "losses"),
    "losses_scaling": (losses_scaling, "losses"),
    "losses_over_processes": (losses_over_processes, "losses_over_processes"),
    "orthogonality_weight": (orthogonality_weight, "orthogonality_weight"),
    "views": (views, "views"),
    "views_jpeg": (views_jpeg, "views"),
    "loader": (loader, "loader"),
    "faults": (faults, "faults"),
    "evaluation": (evaluation, "evaluation"),
    "export_matrix": (export_matrix, "export_matrix"),
    "theory": (theory, "theory"),
    "speedrun_cpu": (speedrun, "cifar10_speedrun_cpu"),
    "claims_cpu": (lambda result: claims("cpu"), "study_*_cpu"),
    "projector_dim_cpu": (study, "study_projector_dim_cpu"),
    "num_views_cpu": (study, "study_num_views_cpu"),
    "num_views_cpu_two": (views_against_two, "study_num_views_cpu"),
    "fraction_cpu": (study, "study_fraction_cpu"),
    "reference_formula_cpu": (study, "study_reference_formula_cpu"),
    "plan_backtest": (plan_backtest, "plan_backtest"),
    "claims_gpu": (lambda result: claims("gpu"), "study_*_gpu"),
    "speedrun_gpu": (speedrun, "cifar10_speedrun_gpu"),
}
PAGES = (
    "losses", "views", "reliability", "evaluation", "publishing", "reproduction", "studies",
)  # fmt: skip
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in PAGES))
BLOCK = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", flags=re.DOTALL)


def _block(match):
    render, name = TABLES[match[1]]
    path = next(iter(sorted(RESULTS.glob(f"{name}.json"))), None)
    body = "\n".join(render(json.loads(path.read_text()))) if path else "*Not run yet.*"
    return f"<!-- table {match[1]} -->\n{body}\n<!-- end -->"


def filled(text):
    """Return a document with its tables filled."""
    return BLOCK.sub(_block, text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        before = document.read_text()
        after = filled(before)
        if "--check" not in sys.argv[1:]:
            document.write_text(after)
        elif after != before:
            raise SystemExit(
                f"{document.name} does not hold the stored results: python benchmarks/tables.py"
            )
