"""The tables of docs/reproduction.md, for `tables.py`: claims with verdicts, and the studies."""

import json
import math
from pathlib import Path

from ssl_views.cli.study_tables import study_tables
from ssl_views.evaluation.intervals import interval_of_mean
from ssl_views.sweep.analysis import analyse
from ssl_views.sweep.curves import EPOCHS, SECONDS, Curves
from ssl_views.sweep.results import RunResult

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HOLDS, WEAKER, NOT_HERE, NOT_RUN = "holds", "holds weaker", "does not hold here", "not run yet"
WITHIN = 0.01  # one point of accuracy
FIXED, TUNED = (
    {"barlow_twins": 0.0004, "vicreg": "0.00133/D"},
    {
        "barlow_twins": "10/D",
        "vicreg": "0.4/D",
    },
)
NAMES = {"barlow_twins": "Barlow Twins", "vicreg": "VICReg"}


def study(result, **reference):
    """Return the tables of one study, with its own or another reference."""
    analysed = analyse(
        [RunResult(**run) for run in result["results"]],
        metric=result["metric"],
        reference=reference or result["reference"],
        targets=result["targets"],
        every_point_counts=result["every_point_counts"],
    )
    return [*study_tables(analysed), "", _footnote(result)]


def _footnote(result):
    machine = result["machine"]
    versions = ", ".join(f"{p} {result['versions'][p]}" for p in ("torch", "timm", "transformers"))
    where = machine["gpu"] or f"{machine['cores']} cores of an {machine['processor']}"
    done = sum(run["status"] == "finished" for run in result["results"])
    return (
        f"{result['dataset']}; {done} of {result['num_runs']} runs, {result['n']} seeds, "
        f"{result['jobs']} at once, {result['seconds'] / 60:.0f} minutes in all on {where}; "
        f"{versions}."
    )


def views_against_two(result):
    """Return the tables of the views study, against two views of the same projector."""
    return study(result, projector_dim=64, num_views=2)


class Evidence:
    """What stored studies say of claims.

    Args:
        preset: "cpu" or "gpu".
    """

    def __init__(self, preset):
        self.studies = {}
        for path in sorted(RESULTS.glob(f"study_*_{preset}.json")):
            name = path.stem.removeprefix("study_").removesuffix(f"_{preset}")
            stored = json.loads(path.read_text())
            runs = [RunResult(**run) for run in stored["results"]]
            self.studies[name] = [run for run in runs if run.finished]

    def curves(self, name, **settings):
        """Return the curves of the runs with these settings, or None."""
        runs = [
            run
            for run in self.studies.get(name, ())
            if all(run.settings.get(key) == value for key, value in settings.items())
        ]
        return Curves(runs, "knn") if runs else None

    def difference(self, first, second, axis):
        """Return the interval of the difference where the shorter of two groups ends, by seed."""
        if first is None or second is None:
            return None
        place = min(first.end(axis), second.end(axis))
        one, other = first.at(axis, place), second.at(axis, place)
        shared = [one[seed] - other[seed] for seed in one if seed in other]
        return interval_of_mean(shared) if shared else None

    def share_of_time(self, group, reference):
        """Return (share, low, high) of the reference's time that a group needs for its accuracy.

        None where a run of the group does not reach what the reference ends with in the mean.
        """
        if group is None or reference is None:
            return None
        ends = {run.settings["seed"]: run.curve[SECONDS][-1] for run in reference.runs}
        last = [run.curve["knn"][-1] for run in reference.runs]
        times = group.seconds_to(sum(last) / len(last))
        if len(times) < len(group.runs):
            return len(times), len(group.runs)
        shares = [math.log(times[seed] / ends[seed]) for seed in times if seed in ends]
        found = interval_of_mean(shares)
        return tuple(math.exp(end) for end in (found.mean, found.low, found.high))


def _points(interval):
    if interval is None:
        return "-"
    half = "" if interval.high is None else f" ± {100 * (interval.high - interval.mean):.1f}"
    return f"{100 * interval.mean:+.1f}{half} points"


def _above(interval, bound):
    """Return the verdict on "the difference is above a bound"."""
    if interval is None:
        return NOT_RUN
    if interval.low is not None and interval.low > bound:
        return HOLDS
    return WEAKER if interval.mean > bound else NOT_HERE


def _below(share, bound):
    """Return figure and verdict on "this share of the time is enough"."""
    if share is None:
        return "-", NOT_RUN
    if len(share) == 2:
        return f"reached by {share[0]} of {share[1]} runs", NOT_HERE
    mean, low, high = share
    verdict = HOLDS if high <= bound else WEAKER if mean <= bound else NOT_HERE
    return f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f}) of the time", verdict


def _projector_claims(found):
    for loss, title in NAMES.items():

        def group(dim, weights, loss=loss):
            return found.curves(
                "projector_dim",
                loss=loss,
                projector_dim=dim,
                orthogonality_weight=weights[loss],
            )

        small, fixed = group(64, TUNED), group(64, FIXED)
        gain = found.difference(small, fixed, EPOCHS)
        yield (
            f"{title}: at D = 64 a tuned weight beats the fixed one",
            _points(gain),
            _above(gain, 0),
        )
        wide = [g for g in (group(1024, TUNED), group(1024, FIXED)) if g is not None]
        best = (
            max(wide, key=lambda g: sum(r.curve["knn"][-1] for r in g.runs) / len(g.runs))
            if wide
            else None
        )
        for axis, name in ((SECONDS, "equal time"), (EPOCHS, "equal epochs")):
            gap = found.difference(small, best, axis)
            yield (
                f"{title}: D = 64, tuned, is within 1 point of the best D = 1024, at {name}",
                _points(gap),
                _above(gap, -WITHIN),
            )


def _view_claims(found):
    two, wide = (found.curves("num_views", projector_dim=dim, num_views=2) for dim in (64, 1024))
    for views in (4, 8):
        more = found.curves("num_views", projector_dim=64, num_views=views)
        share = found.share_of_time(more, two)
        yield f"V = {views} reaches what V = 2 ends with in 70 % of its time", *_below(share, 0.7)
        gain = found.difference(more, two, EPOCHS)
        yield f"V = {views} is better than V = 2 at equal epochs", _points(gain), _above(gain, 0)
        share = found.share_of_time(more, wide)
        yield (
            f"V = {views}, D = 64 reaches what V = 2, D = 1024 ends with in less time",
            *_below(share, 1),
        )


def _fraction_claims(found):
    def group(fraction, views):
        return found.curves("fraction", fraction=fraction, num_views=views)

    gap = found.difference(group(0.1, 4), group(0.2, 2), SECONDS)
    text = "V = 4 on 50 % of the images is within 1 point of V = 2 on all, at equal time"
    yield text, _points(gap), _above(gap, -WITHIN)
    gains = {f: found.difference(group(f, 4), group(f, 2), SECONDS) for f in (0.025, 0.2)}
    shrinks = None
    if None not in gains.values():
        pairs = [_by_seed(found, group(f, 4), group(f, 2)) for f in (0.2, 0.025)]
        shared = [pairs[0][seed] - pairs[1][seed] for seed in pairs[0] if seed in pairs[1]]
        shrinks = interval_of_mean(shared)
    text = "The gain of V = 4 over V = 2 is smaller at 12.5 % of the images than at 100 %"
    yield text, _points(shrinks), _above(shrinks, 0)


def _by_seed(found, first, second):
    place = min(first.end(SECONDS), second.end(SECONDS))
    one, other = first.at(SECONDS, place), second.at(SECONDS, place)
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def _formula_claims(found):
    def group(views, weight, **more):
        return found.curves(
            "reference_formula", num_views=views, orthogonality_weight=weight, **more
        )

    ours = found.studies.get("reference_formula", ())
    plain = [run for run in ours if "loss_args" not in run.settings]
    found.studies["reference_formula_ours"] = plain
    for weight, theirs in (("2.5/D", "4.444/D"), ("10/D", "17.78/D"), ("40/D", "71.11/D")):
        reference = group(4, theirs, loss_args={"redundancy": "mean"})
        mine = found.curves("reference_formula_ours", num_views=4, orthogonality_weight=weight)
        gap = found.difference(mine, reference, EPOCHS)
        yield (
            f"V = 4, weight {weight}: our formula is better than the authors'",
            _points(gap),
            _above(gap, 0),
        )


def claims(preset):
    """Return the table of all claims."""
    found = Evidence(preset)
    lines = ["| claim | our figure | verdict |", "| --- | --- | --- |"]
    for rows in (_projector_claims, _view_claims, _fraction_claims, _formula_claims):
        lines += [f"| {claim} | {figure} | {verdict} |" for claim, figure, verdict in rows(found)]
    return [
        *lines,
        "",
        "kNN accuracy on 5,000 test images, mean and 95 % interval over seeds. *Holds*: the whole "
        "interval is on the claim's side; *holds weaker*: the mean is; *does not hold here*: "
        "neither is.",
    ]


def plan_backtest(result):
    """Return the table of plans from studies that were cut short."""
    lines = [
        "| study | planned from | settings | error, points | in the interval | chosen is best with "
        "probability | points lost by choosing it |",
        "| --- |" + " --- |" * 6,
    ]
    for name, cases in result["studies"].items():
        for case in cases:
            groups = case["groups"].values()
            error = sum(abs(g["predicted"] - g["measured"]) for g in groups) / len(groups)
            inside = sum(g["low"] <= g["measured"] <= g["high"] for g in groups)
            lines.append(
                f"| {name} | {100 * case['share']:.0f} % of the time | {len(groups)} "
                f"| {100 * error:.1f} | {inside} of {len(groups)} "
                f"| {100 * case['best_prob']:.0f} % | {100 * case['points_lost']:.1f} |"
            )
    return lines
