"""Write the tables of README.md from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # fail if a table is not that of its JSON
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean

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


def filled(text):
    """Return a document with its tables filled."""
    for name, render in (("main_job", main_job), ("cifar10_cpu", cifar10_cpu)):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        body = "\n".join(render(result))
        block = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        text = block.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before = readme.read_text()
    if "--check" in sys.argv[1:]:
        if filled(before) != before:
            raise SystemExit(
                "README.md does not hold the stored results: python benchmarks/tables.py"
            )
    else:
        readme.write_text(filled(before))
