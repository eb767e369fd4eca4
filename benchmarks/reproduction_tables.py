"""The tables of docs/reproduction.md, for `tables.py`: claims with verdicts, and the studies."""

import json
from pathlib import Path

from ssl_views.cli.study_tables import points, study_tables
from ssl_views.sweep.analysis import analyse
from ssl_views.sweep.comparing import difference, times_faster
from ssl_views.sweep.curves import EPOCHS, SECONDS, Curves, align, group_results
from ssl_views.sweep.pictures import draw_study
from ssl_views.sweep.results import RunResult

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HOLDS, WEAKER, NOT_HERE, NOT_RUN = "holds", "holds weaker", "does not hold here", "not run yet"
FOR, AGAINST = "not decided, mean for it", "not decided, mean against it"
WITHIN = 0.01  # one point of accuracy
NAMES = {"barlow_twins": "Barlow Twins", "vicreg": "VICReg"}
# Where each preset has the groups that claims are about.
SETTINGS = {
    "cpu": {
        "small": 64,
        "wide": 1024,
        "fixed": {"barlow_twins": 0.0004, "vicreg": "0.00133/D"},
        "tuned": {
            "barlow_twins": {64: "10/D", 1024: "10/D"},
            "vicreg": {64: "0.4/D", 1024: "0.4/D"},
        },
        "views_dim": 64,
        "fractions": {0.125: 0.025, 0.5: 0.1, 1.0: 0.2},
        "weights": {"2.5/D": "4.444/D", "10/D": "17.78/D", "40/D": "71.11/D"},
    },
    "gpu": {
        "small": 64,
        "wide": 8192,
        "fixed": {"barlow_twins": 0.0004, "vicreg": "0.00133/D"},
        "tuned": {
            "barlow_twins": {64: 0.04, 8192: 0.0008},
            "vicreg": {64: "0.05/D", 8192: "0.00125/D"},
        },
        "views_dim": 256,
        "fractions": {0.125: 0.125, 0.5: 0.5, 1.0: 1.0},
        "weights": {"2.5/D": "4.444/D", "5/D": "8.889/D", "10/D": "17.78/D", "20/D": "35.56/D"},
    },
}


def _analysed(result, reference):
    """Return the runs of a stored study, and what they say."""
    runs = [RunResult(**run) for run in result["results"]]
    return runs, analyse(
        runs,
        metric=result["metric"],
        reference=reference or result["reference"],
        targets=result["targets"],
        every_point_counts=result["every_point_counts"],
    )


def study(result, **reference):
    """Return the tables of one study, with its own or another reference."""
    _, analysed = _analysed(result, reference)
    return [*study_tables(analysed), "", _footnote(result)]


def picture(result):
    """Return the picture of one study, as a PNG file."""
    return draw_study(*_analysed(result, None))


def views_against_two(result):
    """Return the tables of the views study, against two views of the same projector."""
    dims = {run["settings"]["projector_dim"] for run in result["results"]}
    return study(result, projector_dim=min(dims), num_views=2)


def _footnote(result):
    machine = result["machine"]
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", "timm", "transformers"))
    where = machine["gpu"] or f"{machine['cores']} cores of an {machine['processor']}"
    finished = [run for run in result["results"] if run["status"] == "finished"]
    untrained = sum(run["curve"]["knn"][0] for run in finished) / len(finished)
    return (
        f"Untrained backbones reach {100 * untrained:.1f} %, raw pixels "
        f"{100 * result['raw_pixels']:.1f} %. {result['dataset']}; {len(finished)} of "
        f"{result['num_runs']} runs, {result['n']} seeds, {result['jobs']} at once, "
        f"{result['seconds'] / 60:.0f} minutes in all on {where}; {versions}."
    )


class Evidence:
    """What the stored studies of a preset say of claims."""

    def __init__(self, preset):
        self.settings = SETTINGS[preset]
        self.studies, self.probed = {}, None
        for path in sorted(RESULTS.glob(f"study_*_{preset}.json")):
            name = path.stem.removeprefix("study_").removesuffix(f"_{preset}")
            stored = json.loads(path.read_text())
            runs = [RunResult(**run) for run in stored["results"]]
            self.studies[name] = [run for run in runs if run.finished]

    def group(self, name, **settings):
        """Return the curves of the runs with these settings; None where there are none."""
        settings = {"loss_args": None, **settings}
        runs = [
            run
            for run in self.studies.get(name, ())
            if all(run.settings.get(key) == value for key, value in settings.items())
        ]
        return Curves(align(runs), "knn") if runs else None


def _difference(found, study, pair, axis, bound):
    """Return figure and verdict on "the first of a pair is ahead by more than a bound"."""
    if None in pair:
        return "-", NOT_RUN
    losses = {run.settings.get("loss") for curves in pair for run in curves.runs}
    runs = [run for run in found.studies[study] if run.settings.get("loss") in losses]
    among = [Curves(group, "knn") for group in group_results(runs)]
    found = difference(*pair, axis, among=among)
    verdict = FOR if found.mean > bound else AGAINST
    if found.low is not None and not found.low <= bound <= found.high:
        verdict = HOLDS if found.mean > bound else NOT_HERE
    return f"{points(found, 'knn')} points", verdict


def _share_of_time(group, reference, bound):
    """Return figure and verdict on "this share of the reference's time is enough"."""
    if group is None or reference is None:
        return "-", NOT_RUN
    faster = times_faster(group, reference)
    if faster is None:
        return "its mean does not reach it", AGAINST
    share = 1 / faster.mean
    verdict = FOR if share <= bound else AGAINST
    if faster.low is None:
        return f"{100 * share:.0f} % of the time", verdict
    low, high = 1 / faster.high, 1 / faster.low
    if high <= bound:
        verdict = HOLDS
    elif high < 1:
        verdict = WEAKER
    elif low > bound:
        verdict = NOT_HERE
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f}) of the time", verdict


def projector_groups(found, loss):
    """Return the groups: small and tuned, small and fixed, wide and tuned, wide and fixed."""
    settings, fixed = found.settings, found.settings["fixed"][loss]
    return [
        found.group("projector_dim", loss=loss, projector_dim=dim, orthogonality_weight=weight)
        for dim in (settings["small"], settings["wide"])
        for weight in (settings["tuned"][loss][dim], fixed)
    ]


def _projector_claims(found):
    small, wide = found.settings["small"], found.settings["wide"]
    for loss, title in NAMES.items():
        tuned, fixed, *widest = projector_groups(found, loss)
        best = None if None in widest else max(widest, key=lambda group: group.smooth()[1][-1])
        text = f"{title}: at D = {small} a tuned weight beats the fixed one"
        yield text, *_difference(found, "projector_dim", (tuned, fixed), EPOCHS, 0)
        for axis, name in ((SECONDS, "equal time"), (EPOCHS, "equal epochs")):
            text = (
                f"{title}: D = {small}, tuned, is within 1 point of the best D = {wide}, at {name}"
            )
            yield text, *_difference(found, "projector_dim", (tuned, best), axis, -WITHIN)


def view_groups(found):
    """Return the groups by (projector_dim, num_views)."""
    dim, wide = found.settings["views_dim"], found.settings["wide"]
    return {
        (d, v): found.group("num_views", projector_dim=d, num_views=v)
        for d, v in ((dim, 2), (dim, 4), (dim, 8), (wide, 2))
    }


def _view_claims(found):
    dim, wide = found.settings["views_dim"], found.settings["wide"]
    groups = view_groups(found)
    two = groups[dim, 2]
    for views in (4, 8):
        more = groups[dim, views]
        text = f"V = {views} reaches what V = 2 ends with in 70 % of its time"
        yield text, *_share_of_time(more, two, 0.7)
        text = f"V = {views} is better than V = 2 at equal epochs"
        yield text, *_difference(found, "num_views", (more, two), EPOCHS, 0)
        text = f"V = {views}, D = {dim} reaches what V = 2, D = {wide} ends with in less time"
        yield text, *_share_of_time(more, groups[wide, 2], 1.0)


def fraction_groups(found):
    """Return the groups by (share of all images, num_views)."""
    return {
        (share, views): found.group("fraction", fraction=fraction, num_views=views)
        for share, fraction in found.settings["fractions"].items()
        for views in (2, 4)
    }


def _fraction_claims(found):
    groups = fraction_groups(found)
    text = "V = 4 on 50 % of the images is within 1 point of V = 2 on all, at equal time"
    half_of_them = groups[0.5, 4], groups[1.0, 2]
    yield text, *_difference(found, "fraction", half_of_them, SECONDS, -WITHIN)
    text = "images matter: V = 2 on all is better than V = 2 on 12.5 % of them, at equal time"
    yield text, *_difference(found, "fraction", (groups[1.0, 2], groups[0.125, 2]), SECONDS, 0)
    for share in (1.0, 0.125):
        text = f"V = 4 is better than V = 2 on {100 * share:g} % of the images, at equal time"
        pair = groups[share, 4], groups[share, 2]
        yield text, *_difference(found, "fraction", pair, SECONDS, 0)


def formula_groups(found):
    """Return the pairs of groups by weight: ours, the authors'."""
    return {
        ours: tuple(
            found.group(
                "reference_formula", num_views=4, orthogonality_weight=weight, loss_args=loss_args
            )
            for weight, loss_args in ((ours, None), (theirs, {"redundancy": "mean"}))
        )
        for ours, theirs in found.settings["weights"].items()
    }


def _formula_claims(found):
    for weight, pair in formula_groups(found).items():
        text = f"V = 4, weight {weight}: our formula is better than the authors'"
        yield text, *_difference(found, "reference_formula", pair, EPOCHS, 0)


def claims(preset):
    """Return the table of all claims."""
    found = Evidence(preset)
    lines = ["| claim | our figure | verdict |", "| --- | --- | --- |"]
    for rows in (_projector_claims, _view_claims, _fraction_claims, _formula_claims):
        lines += [f"| {claim} | {figure} | {verdict} |" for claim, figure, verdict in rows(found)]
    return [
        *lines,
        "",
        "kNN accuracy on test images, mean difference between runs with the same seed and its 95 % "
        "interval over seeds. *Holds*: the whole interval is on the claim's side; *does not hold "
        "here*: it is on the other side; *not decided*: it has both. *Holds weaker*, of times: the "
        "whole interval is below that of two views, if not below the share in the claim.",
    ]


def plan_backtest(result):
    """Return the table of plans from studies that were cut short."""
    lines = [
        "| study | planned from | settings | error, points | in the interval of the law | chosen "
        "is best with probability | points lost by choosing it |",
        "| --- |" + " --- |" * 6,
    ]
    for name, cases in result["studies"].items():
        for case in cases:
            groups = case["groups"].values()
            error = sum(abs(g["predicted"] - g["measured"]) for g in groups) / len(groups)
            inside = sum(g["low"] <= g["measured"] <= g["high"] for g in groups)
            lines.append(
                f"| {name} | {100 * case['share']:.0f} % of the evaluations | {len(groups)} "
                f"| {100 * error:.1f} | {inside} of {len(groups)} "
                f"| {100 * case['best_prob']:.0f} % | {100 * case['points_lost']:.1f} |"
            )
    return lines
