"""Plans: predictions of learning curves whose future is known, and what the command says."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ssl_views.cli import plan as command
from ssl_views.sweep.planning import (
    best_probabilities,
    frontier_probabilities,
    plan_budget,
)
from ssl_views.sweep.power_law_curves import (
    _DELAYS,
    _EXPONENTS,
    _FLOORS,
    PowerLaws,
)
from ssl_views.sweep.results import RunResult, append_result, read_results

END = 600.0  # seconds, of the simulated runs


def result(values, seconds, *, seed=0, metric="knn", **settings):
    name = f"{settings}{seed}"
    curve = {
        "step": [round(10 * t) for t in seconds],
        "train_seconds": [float(t) for t in seconds],
        metric: [float(v) for v in values],
    }
    return RunResult(name, name, {**settings, "seed": seed}, "finished", curve=curve)


def groups_of(plan):
    return {group.name: group for group in plan.groups}


def simulated(generator, *, num_groups=4, num_seeds=3, floor_spread=0.008, same=False):
    """Studies whose expected accuracies are known laws: (results, laws)."""
    times = np.linspace(END / 8, END, 8)
    base = generator.uniform(0.15, 0.35)
    results, laws = [], []
    for group in range(num_groups):
        if not (same and laws):
            floor = base + generator.normal(0, floor_spread)
            size, exponent = generator.uniform(0.1, 0.3), generator.uniform(0.3, 1.2)
            delay = END * generator.uniform(0, 0.3)

        def law(t, floor=floor, size=size, exponent=exponent, delay=delay):
            return 1 - floor - size * ((t + delay) / (0.3 * END + delay)) ** -exponent

        laws.append(law)
        for seed in range(num_seeds):
            noise = generator.normal(0, 0.004) + generator.normal(0, 0.003, len(times))
            results.append(result(law(times) + noise, times, seed=seed, num_views=group))
    return results, laws


def repeated(repeats, times_longer, **options):
    """Plans of many simulated studies, with the true accuracies at the budget."""
    for repeat in range(repeats):
        results, laws = simulated(np.random.default_rng(repeat), **options)
        budget = END * times_longer
        plan = plan_budget(results, budget, every_point_counts=True, num_draws=1000)
        truths = {f"num_views {i}": law(budget) for i, law in enumerate(laws)}
        yield plan, truths


# The laws.


@pytest.mark.parametrize("neighbours_alike", [False, True])
def test_laws_are_weighted_as_the_formula_says(neighbours_alike):
    times = np.array([10.0, 30.0, 40.0, 70.0, 90.0])
    noise = np.array([0.0001, -0.0006, 0.0026, 0.0004, -0.0022])
    if neighbours_alike:
        times = np.linspace(10.0, 160.0, 16)
        noise = 0.004 * np.sin(times / 12)
    errors = 0.2 + 0.5 * times**-0.4 + noise
    w = (times / times[-1]) ** 2
    rows = []
    for delay in _DELAYS:
        for exponent in _EXPONENTS:
            for floor in _FLOORS:
                u = times / times[-1]
                x = floor + (1 - floor) * ((u + delay) / (1 + delay)) ** -exponent
                xx = sum(w * x * x)
                m = max(sum(w * x * errors) / xx, 0)
                later = m * (floor + (1 - floor) * ((3.0 + delay) / (1 + delay)) ** -exponent)
                rows.append((sum(w * (errors - m * x) ** 2), xx, later, errors - m * x))
    best = min(rows, key=lambda row: row[0])[3] * np.sqrt(w)
    a = max(0.0, sum(best[1:] * best[:-1]) / sum(best * best))
    assert (a > 0.2) == neighbours_alike
    n = sum(w) ** 2 / sum(w**2) * (1 - a) / (1 + a)
    scale = n / sum(w)
    logs = [
        -0.5 * math.log(xx) - (n - 1 + 2) / 2 * math.log(scale * rr + 2 * 0.003**2)
        for rr, xx, _, _ in rows
    ]
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    laws = PowerLaws.fit(times, errors)
    np.testing.assert_allclose(laws.weights, weights, rtol=1e-8, atol=1e-15)
    assert laws.degrees == pytest.approx(n + 1)
    expected = sum(p * row[2] for p, row in zip(weights, rows, strict=True))
    drawn = laws.draw([3 * times[-1]], 40_000, np.random.default_rng(1))
    standard_error = drawn.std() / math.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(expected, abs=5 * standard_error)


def test_laws_spread_with_distance_and_do_not_rise():
    times = np.linspace(1, 8, 8)
    noise = np.random.default_rng(0).normal(0, 0.003, 8)
    laws = PowerLaws.fit(times, 0.2 + 0.3 * times**-0.5 + noise)
    drawn = laws.draw([8, 16, 32, 64], 4000, np.random.default_rng(0))
    widths = np.diff(np.quantile(drawn, [0.025, 0.975], axis=0), axis=0)[0]
    assert np.all(np.diff(widths) > 0)
    assert np.all(np.diff(drawn, axis=1) <= 0)
    assert np.all(drawn >= 0)


def test_laws_do_not_depend_on_the_unit_of_time():
    times, errors = np.array([1.0, 2.0, 4.0, 6.0, 9.0]), np.array([0.5, 0.42, 0.37, 0.33, 0.32])
    drawn = [
        PowerLaws.fit(times * unit, errors).draw([20 * unit], 100, np.random.default_rng(0))
        for unit in (1, 3600)
    ]
    np.testing.assert_allclose(*drawn, rtol=1e-9)


@pytest.mark.parametrize(
    ("times", "errors", "message"),
    [
        ([1, 2, 3], [0.5, 0.4, 0.3], "at least 4 points"),
        ([1, 2, 3, 4], [0.5, 0.4, 0.3], "shape"),
        ([0, 1, 2, 3], [0.5, 0.4, 0.3, 0.2], "rise from above 0"),
        ([1, 3, 2, 4], [0.5, 0.4, 0.3, 0.2], "rise from above 0"),
        ([1, 2, 3, 4], [0.5, 0.4, math.nan, 0.2], "be finite"),
    ],
)
def test_points_that_laws_cannot_have(times, errors, message):
    with pytest.raises(ValueError, match=message):
        PowerLaws.fit(times, errors)


# Whether the stated uncertainty is right.


@pytest.mark.parametrize("times_longer", [1, 2, 4])
def test_intervals_cover_the_truth_and_say_something(times_longer):
    covered, widths = [], []
    for plan, truths in repeated(60, times_longer):
        for group in plan.groups:
            covered.append(group.low <= truths[group.name] <= group.high)
            widths.append(group.high - group.low)
    assert np.mean(covered) >= 0.88  # measured 0.95 to 1, of 240
    assert np.mean(widths) < 0.03 * times_longer


@pytest.mark.parametrize("times_longer", [1, 2])
def test_probabilities_are_the_shares_that_come_true(times_longer):
    stated, hit = [], []
    for plan, truths in repeated(120, times_longer, floor_spread=0.004, num_groups=3):
        best = max(truths, key=truths.get)
        stated += [group.best_prob for group in plan.groups]
        hit += [group.name == best for group in plan.groups]
    stated, hit = np.array(stated), np.array(hit)
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        chosen = (stated >= low) & (stated < high)
        error = math.sqrt(np.sum(stated[chosen] * (1 - stated[chosen])))
        expected = np.sum(stated[chosen])
        # above one half, extrapolations are too modest by intent
        assert np.sum(hit[chosen]) > expected - 3 * error - 1 or high <= 0.5
        assert np.sum(hit[chosen]) < expected + 3 * error + 1 or low >= 0.5
    assert np.mean(hit[stated >= 0.8]) >= 0.8
    assert np.mean(hit[stated < 0.2]) <= 0.1


def test_equal_groups_have_the_chances_of_a_lottery():
    first, surest = [], []
    for plan, _ in repeated(80, 1, same=True, num_groups=2):
        assert sum(group.best_prob for group in plan.groups) == pytest.approx(1)
        surest.append(plan.groups[0].best_prob)
        first.append(groups_of(plan)["num_views 0"].best_prob)
    assert np.mean(first) == pytest.approx(0.5, abs=0.12)
    assert np.mean(np.array(surest) > 0.95) <= 0.2  # 0.1 would be right: either end


@pytest.mark.parametrize("times_longer", [1, 2, 4])
def test_a_large_gap_is_seen(times_longer):
    times = np.linspace(60, END, 10)
    generator = np.random.default_rng(0)
    results = [
        result(
            top - 0.4 * (times / 60) ** -0.8 + generator.normal(0, 0.003, 10),
            times,
            seed=seed,
            num_views=views,
        )
        for views, top in ((2, 0.7), (4, 0.85), (8, 0.75))
        for seed in range(2)
    ]
    plan = plan_budget(results, END * times_longer, every_point_counts=True)
    assert plan.groups[0].name == "num_views 4"
    assert plan.groups[0].best_prob > 0.9
    assert plan.expected_loss < 0.005


# What a plan is made of.


def test_interpolation_between_evaluations():
    times, values = np.array([100.0, 200.0, 400.0]), np.array([0.5, 0.6, 0.64])
    slow = times * 1.5
    results = [
        result(values, times, num_views=2, seed=0),
        result(values + 0.02, times, num_views=2, seed=1),
        result(values - 0.05, slow, num_views=4, seed=0),
    ]
    plan = plan_budget(results, 310, every_point_counts=True)
    found = groups_of(plan)
    assert found["num_views 2"].predicted == pytest.approx(np.interp(310, times, values) + 0.01)
    assert found["num_views 4"].predicted == pytest.approx(np.interp(310, slow, values) - 0.05)
    assert found["num_views 2"].num_runs == 2
    assert found["num_views 2"].extrapolation == 1
    assert found["num_views 2"].measured == pytest.approx(0.65)
    assert found["num_views 2"].measured_seconds == 400
    # two values 0.02 apart: deviation 0.02 / sqrt 2, one degree; t of one degree at 97.5 % is 12.71
    assert (plan.several_seeds, plan.degrees) == (True, 1)
    deviation = 0.02 / math.sqrt(2)
    assert found["num_views 2"].seed_deviation == pytest.approx(deviation / math.sqrt(2))
    assert found["num_views 4"].seed_deviation == pytest.approx(deviation)
    half = found["num_views 2"].predicted - found["num_views 2"].low
    assert half == pytest.approx(12.71 * deviation / math.sqrt(2), rel=0.15)


def test_pooled_spread_and_its_interval():
    times = np.array([100.0, 200.0])
    offsets = {2: (-0.01, 0.0, 0.013), 4: (0.02, -0.01), 8: (0.004,)}
    results = [
        result(np.array([0.5, 0.6]) + offset, times, num_views=views, seed=seed)
        for views, seeds in offsets.items()
        for seed, offset in enumerate(seeds)
    ]
    plan = plan_budget(results, 200, every_point_counts=True, num_draws=40_000)
    squares = sum(sum((x - np.mean(o)) ** 2 for x in o) for o in offsets.values())
    deviation = math.sqrt(squares / 3)  # three values less one mean, two less one
    half = 3.182 * deviation / math.sqrt(3)
    group = groups_of(plan)["num_views 2"]
    assert plan.degrees == 3
    assert group.high - group.predicted == pytest.approx(half, rel=0.05)
    assert group.predicted - group.low == pytest.approx(half, rel=0.05)
    wider = plan_budget(results, 200, every_point_counts=True, confidence=0.99)
    assert groups_of(wider)["num_views 2"].low < group.low


def test_curves_that_cross_are_both_on_the_frontier():
    times = np.linspace(60, 600, 10)
    early, late = 0.6 + 0 * times, 0.3 + 0.5 * times / 600
    never = early - 0.1
    generator = np.random.default_rng(0)
    results = [
        result(values + generator.normal(0, 0.002), times, num_views=views, seed=seed)
        for views, values in ((2, early), (4, late), (8, never))
        for seed in range(3)
    ]
    at_600 = groups_of(plan_budget(results, 600, every_point_counts=True))
    assert at_600["num_views 2"].frontier_prob == pytest.approx(1, abs=0.01)
    assert at_600["num_views 4"].frontier_prob == pytest.approx(1, abs=0.01)
    assert at_600["num_views 8"].frontier_prob == pytest.approx(0, abs=0.01)
    assert at_600["num_views 4"].best_prob == pytest.approx(1, abs=0.01)
    at_200 = groups_of(plan_budget(results, 200, every_point_counts=True))
    assert at_200["num_views 2"].best_prob == pytest.approx(1, abs=0.01)
    assert at_200["num_views 4"].frontier_prob == pytest.approx(0, abs=0.01)


def test_shares_of_draws_against_a_loop():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, (200, 3, 5)) / 6  # with ties
    values[:, 2, :2] = -np.inf
    best, frontier = np.zeros(3), np.zeros(3)
    for draw in values:
        top = max(draw[:, -1])
        winners = [g for g in range(3) if draw[g, -1] == top]
        for g in winners:
            best[g] += 1 / len(winners) / len(values)
        for g in range(3):
            above = [
                all(draw[h, s] < draw[g, t] for h in range(3) for s in range(t))
                and all(draw[h, t] <= draw[g, t] for h in range(3))
                for t in range(5)
            ]
            frontier[g] += any(above) / len(values)
    np.testing.assert_allclose(best_probabilities(values[..., -1]), best)
    np.testing.assert_allclose(frontier_probabilities(values), frontier)


def test_only_final_values_count_where_the_learning_rate_follows_the_length():
    results = [
        result(
            value * np.linspace(0.5, 1, 6) + offset,
            np.linspace(seconds / 6, seconds, 6),
            num_views=views,
            seed=seed,
        )
        for views, value, seconds in ((2, 0.6, 200), (4, 0.7, 400), (8, 0.9, 900))
        for seed, offset in enumerate((-0.005, 0.005))
    ]
    plan = plan_budget(results, 500)
    found = groups_of(plan)
    assert list(found) == ["num_views 4", "num_views 2"]
    assert found["num_views 4"].predicted == pytest.approx(0.7)
    assert found["num_views 4"].law_deviation == pytest.approx(0, abs=1e-12)
    assert found["num_views 2"].extrapolation == 1
    assert found["num_views 2"].frontier_prob == pytest.approx(1)  # the best until 400 seconds
    assert found["num_views 4"].best_prob > 0.9
    assert plan.left_out == {"num_views 8": "it takes 900 seconds"}
    assert any("nothing is extrapolated" in note for note in plan.notes)


def test_one_seed_each():
    times = np.linspace(60, 600, 10)
    generator = np.random.default_rng(0)
    results = [
        result(0.6 - 0.2 * (times / 60) ** -0.5 + generator.normal(0, 0.01, 10), times, num_views=v)
        for v in (2, 4)
    ]
    plan = plan_budget(results, 600, every_point_counts=True)
    assert not plan.several_seeds
    assert 0.003 < plan.groups[0].seed_deviation < 0.02  # of evaluations, 0.01
    assert any("spread of seeds is unknown" in sentence for sentence in command.advice(plan))
    final = plan_budget(results, 600)
    assert final.groups[0].best_prob is None
    assert final.groups[0].low is None
    assert "cannot be said" in command.advice(final)[0]
    assert command.plan_table(final)[1].split()[-2:] == ["-", "-"]


def test_what_is_not_known_is_left_out():
    times = np.array([100.0, 200.0, 300.0, 400.0])
    values = np.array([0.5, 0.55, 0.58, 0.6])
    results = [
        result(values, times, num_views=2, seed=0),
        result(values + 0.01, times, num_views=2, seed=1),
        result(values[:3], times[:3], num_views=4),
        result(values, times * 9, num_views=8),
        replace(result(values, times, num_views=16), status="failed", curve={}),
        replace(result(values, times, num_views=32), hardware={"kind": "cuda"}),
        result([], [], num_views=64),
    ]
    plan = plan_budget(results, 600, every_point_counts=True)
    assert set(groups_of(plan)) == {"num_views 2", "num_views 32"}
    assert "fewer than 4 evaluations" in plan.left_out["num_views 4"]
    assert "first evaluation comes after 900 seconds" in plan.left_out["num_views 8"]
    assert "share no evaluation" in plan.left_out["num_views 64"]
    assert any("1 runs" in note for note in plan.notes)
    assert any("different hardware" in note for note in plan.notes)
    assert plan.groups[0].extrapolation == pytest.approx(1.5)


def test_what_comes_before_training_is_left_out():
    times, values = [0.0, 100, 200, 300, 400], [0.9, 0.5, 0.6, 0.65, 0.67]
    results = [result(values, times, num_views=v, seed=s) for v in (2, 4) for s in (0, 1)]
    without = [result(values[1:], times[1:], num_views=v, seed=s) for v in (2, 4) for s in (0, 1)]
    plans = [plan_budget(r, 800, every_point_counts=True) for r in (results, without)]
    assert plans[0] == plans[1]


def test_a_plan_is_the_same_again():
    results, _ = simulated(np.random.default_rng(0))
    first = plan_budget(results, 900, every_point_counts=True)
    assert first == plan_budget(results, 900, every_point_counts=True)


TWO = [result([0.5, 0.6], [100, 200], num_views=v) for v in (2, 4)]


@pytest.mark.parametrize(
    ("results", "budget", "options", "message"),
    [
        (TWO, 0, {}, "budget must be above 0; got 0"),
        (TWO, math.nan, {}, "budget must be above 0"),
        (TWO, math.inf, {}, "budget must be above 0"),
        (TWO, 200, {"confidence": 95}, "confidence must be between 0 and 1; got 95"),
        (TWO, 200, {"metric": "kn"}, "got 'kn'. Did you mean 'knn'"),
        (TWO, 200, {"metric": "train_seconds"}, "an accuracy .* Runs have knn"),
        ([], 200, {}, "at least one run .* must have finished"),
        ([replace(TWO[0], status="failed")], 200, {}, "at least one run .* must have finished"),
        (TWO[:1], 200, {}, "chooses between settings.*num_views 2"),
        (TWO, 50, {"every_point_counts": True}, "something must be known at a budget of 50"),
        (TWO, 150, {}, "num_views 2: it takes 200 seconds"),
    ],
)
def test_wrong_input(results, budget, options, message):
    with pytest.raises(ValueError, match=message):
        plan_budget(results, budget, **options)


# The command.


@pytest.fixture
def study(tmp_path):
    results, _ = simulated(np.random.default_rng(3), num_seeds=2, floor_spread=0.02)
    for one in results:
        append_result(tmp_path, one)
    facts = {"name": "s", "metric": "knn", "every_point_counts": True}
    (tmp_path / "study.json").write_text(json.dumps(facts))
    return tmp_path


@pytest.mark.parametrize("place", [".", "results.jsonl"])
def test_the_command(capsys, study, place):
    output = study / "deep" / "plan.json"
    words = [str(study / place), "--budget_minutes", "20", "--output", str(output)]
    command.run(words)
    out = capsys.readouterr().out
    numbers = json.loads(output.read_text())
    header, *rows = out.splitlines()[:5]
    assert header.split("  ")[0] == "setting"
    for title in ("runs", "measured kNN", "predicted at 20 min", "P(best)", "P(frontier)"):
        assert title in header
    for row, group in zip(rows, numbers["groups"], strict=True):
        assert row.startswith(group["name"])
        assert f"{100 * group['measured']:.1f} % at 10 min" in row
        interval = f"({100 * group['low']:.1f} to {100 * group['high']:.1f}) %"
        assert f"{100 * group['predicted']:.1f} {interval}" in row
    assert len({len(line) for line in [header, *rows]}) == 1  # aligned
    assert f"Spend 20 min on ({numbers['groups'][0]['name']})" in out
    assert "up to 2.0 times as long" in out
    assert "guess" not in out
    assert "note" not in out
    assert numbers["budget_seconds"] == 1200


def test_far_ahead_is_called_a_guess_and_what_helps_is_said(capsys, study):
    command.run([str(study), "--budget_minutes", "100"])
    out = capsys.readouterr().out
    assert "up to 10.0 times as long as was measured: that far, it is a guess" in out
    assert "Longer runs of (num_views" in out


def test_more_seeds_help_where_seeds_differ_most(study):
    times = [100.0, 200.0]
    results = [
        result([0.5, 0.6 + 0.02 * seed], times, num_views=views, seed=seed)
        for views in (2, 4)
        for seed in range(3)
    ]
    plan = plan_budget(results, 200, every_point_counts=True)
    assert any("Two more seeds of (num_views" in sentence for sentence in command.advice(plan))


def test_settings_that_began_to_vary_later_are_known(capsys, study):
    """Results say what varied when they came; the study says what varies now."""
    facts = json.loads((study / "study.json").read_text())
    stored = read_results(study)
    facts["settings"] = {r.key: {"projector_dim": 8, **r.settings} for r in stored[1:]}
    (study / "study.json").write_text(json.dumps(facts))
    output = study / "plan.json"
    command.run([str(study), "--budget_minutes", "20", "--output", str(output)])
    groups = json.loads(output.read_text())["groups"]
    assert {group["name"].split(",")[0] for group in groups} == {"projector_dim 8"}
    assert sum(group["num_runs"] for group in groups) == len(stored) - 1  # one is of it no more


def test_a_study_without_facts_compares_final_values(capsys, study):
    (study / "study.json").unlink()
    command.run([str(study), "--budget_minutes", "20"])
    out = capsys.readouterr().out
    assert "final, within 20 min" in out
    assert "there is no study.json" in out


@pytest.mark.parametrize(
    ("content", "message"), [("{", "must be JSON"), ("[]", "must be a JSON object")]
)
def test_damaged_facts(study, content, message):
    (study / "study.json").write_text(content)
    with pytest.raises(ValueError, match=f"study.json {message}"):
        command.run([str(study), "--budget_minutes", "20"])


def test_wrong_words(study, tmp_path):
    with pytest.raises(ValueError, match="budget_minutes must be given"):
        command.run([str(study)])
    with pytest.raises(ValueError, match="budget must be above 0; got -60"):
        command.run([str(study), "--budget_minutes", "-1"])
    with pytest.raises(ValueError, match=r"must be its results.jsonl; got .*none', which is none"):
        command.run([str(tmp_path / "none"), "--budget_minutes", "1"])
    (tmp_path / "s.yaml").write_text("about: What was run, not what came of it.")
    with pytest.raises(ValueError, match=r"must be its results.jsonl; got .*s.yaml"):
        command.run([str(tmp_path / "s.yaml"), "--budget_minutes", "1"])
    with pytest.raises(ValueError, match="Did you mean 'knn'"):
        command.run([str(study), "--budget_minutes", "10", "--metric", "kn"])
