"""What a card states: gathered from a run, checked, and the same after JSON."""

import json
import math
import random
from dataclasses import asdict, fields, replace

import pytest
import torch
from card_cases import DETAILS, EVALUATED, EVALUATION, HOSTILE, NOT_EVALUATED, RECIPE

from ssl_views import SSLViewsConfig, SSLViewsModel, ViewRecipe
from ssl_views.card_facts import CardDetails, CardFacts, facts_of, metrics_of
from ssl_views.card_text import is_hub_id
from ssl_views.evaluation.history import RunHistory
from ssl_views.model_card import render_card


def model_of(**values):
    values = {"backbone": "test_resnet", "image_size": 32, "projector_dim": 64, **values}
    return SSLViewsModel(SSLViewsConfig(**values))


@pytest.fixture(scope="module")
def model():
    return model_of(
        num_channels=1, upscale=2, recipe="digits", loss="kernel", orthogonality_weight=0.7,
        model_args={"drop_rate": 0.1},
    )  # fmt: skip


def history_of(**changes):
    record = {
        "seed": 5,
        "images_per_step": 16,
        "training": {
            "bf16": True, "fp16": False, "lars": False, "optim": "adamw_torch",
            "learning_rate": 0.002, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
            "weight_decay": 0.05,
        },
        "data": {"images": 100, "sha256": "a"},
    }  # fmt: skip
    log = [{"step": 40, "epoch": 6.4, "images_seen": 640, "train_seconds": 20.0, "loss": 1.0}]
    values = {
        "folder": None,
        "state": {"global_step": 44, "max_steps": 44, "log_history": log},
        "record": record,
        "evaluation": None,
        "hardware": {
            "kind": "cpu", "device": "CPU", "num_devices": 2, "processes": 1,
            "versions": {"torch": "2.6"},
        },
    }  # fmt: skip
    return RunHistory(**{**values, **changes})


class TestGathering:
    def test_of_a_run(self, model):
        facts = facts_of(model, history_of(), DETAILS)
        encoder, recipe, training, cost = facts.encoder, facts.recipe, facts.training, facts.cost
        assert encoder.architecture == "test_resnet"
        assert encoder.model_args == {}  # without what changes training only
        assert encoder.num_parameters == sum(p.numel() for p in model.backbone.parameters())
        assert (encoder.num_features, encoder.input_size) == (96, (1, 64, 64))
        assert (encoder.mean, encoder.needs) == ((0.3,), None)
        assert (recipe.upscale, recipe.orthogonality_weight) == (2, 0.7)
        assert recipe.initial_weights is None
        assert (training.finished, training.steps, training.seeds) == (True, 44, (5,))
        assert training.images_seen == 44 * 16  # the log ends before the last step
        assert (training.images, training.epochs, training.precision) == (100, 6.4, "bf16")
        assert (training.optimizer, training.learning_rate) == ("adamw_torch", 0.002)
        assert (cost.device, cost.num_devices, cost.seconds) == ("CPU", 2, 20.0)
        assert cost.images_per_second == 32
        assert cost.versions == {"torch": "2.6"}
        assert facts.versions["torch"] == torch.__version__
        assert (facts.evaluation, facts.details) == (None, DETAILS)

    @pytest.mark.parametrize(
        ("values", "weight"),
        [
            ({}, 10 / 64),
            ({"loss": "kernel"}, 2.2 / 64**0.3),
            ({"loss": "vicreg"}, 1 / (25 * 64)),
            ({"loss": "vicreg", "loss_args": {"covariance_weight": 2.0}}, None),
        ],
    )
    def test_auto_becomes_a_number(self, values, weight):
        found = facts_of(model_of(**values), None).recipe.orthogonality_weight
        assert found == (weight if weight is None else pytest.approx(weight))

    def test_of_a_live_model(self, model):
        facts = facts_of(model, None)
        assert (facts.training, facts.cost, facts.evaluation) == (None, None, None)

    def test_of_an_old_run_without_records(self, model):
        state = {"global_step": 4, "log_history": [{"step": 4, "images_seen": 64}]}
        facts = facts_of(model, history_of(record=None, hardware=None, state=state))
        assert (facts.training.finished, facts.training.images_seen) == (False, 64)
        assert (facts.training.optimizer, facts.training.precision) == (None, None)
        assert (facts.cost.device, facts.cost.images_per_second) == (None, None)

    def test_of_a_stream_trained_with_lars(self, model):
        training = {**history_of().record["training"], "lars": True, "bf16": False}
        record = {**history_of().record, "training": training, "data": {"stream": True}}
        facts = facts_of(model, history_of(record=record)).training
        assert (facts.images, facts.optimizer, facts.precision) == (None, "LARS", "float32")

    def test_no_path_is_taken_along(self):
        evaluation = {
            **EVALUATION,
            "data": None,
            "protocol": {**EVALUATION["protocol"], "dataset": "/home/me/secret", "split": "../me"},
            "of another program": "/home/me/secret",
        }
        start = {"initial_weights": "/home/me/encoder"}
        model = model_of()
        model.config.initial_weights = start["initial_weights"]
        model.config.model_args = {"file": "~/me", "nested": [{"x": "C:\\me"}], "layers": [1, 2]}
        facts = facts_of(model, history_of(evaluation=evaluation))
        text = json.dumps(facts.as_dict())
        for path in ("/home", "../me", "~/me", "C:"):
            assert path not in text
        assert facts.encoder.model_args["layers"] == [1, 2]
        assert facts.evaluation["protocol"] == EVALUATION["protocol"]
        assert facts.evaluation["eigenspectrum"] == EVALUATION["eigenspectrum"]

    def test_a_damaged_record_gets_a_sentence(self, model):
        record = {**history_of().record, "seed": "<script>"}
        with pytest.raises(ValueError, match="seeds must be any number of: a whole number"):
            facts_of(model, history_of(record=record))


class TestJson:
    @pytest.mark.parametrize("facts", [EVALUATED, NOT_EVALUATED], ids=["evaluated", "not"])
    def test_round_trip(self, facts):
        stored = json.loads(json.dumps(facts.as_dict()))
        assert CardFacts.from_dict(stored) == facts

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_any_text_survives(self, text):
        details = CardDetails(data=text[:1000], title=text[:100])
        facts = replace(EVALUATED, details=details)
        assert CardFacts.from_dict(json.loads(json.dumps(facts.as_dict()))) == facts

    @pytest.mark.parametrize(("name", "most"), [("data", 1000), ("limits", 1000), ("title", 100)])
    def test_texts_that_would_be_cut_are_refused(self, name, most):
        CardDetails(**{name: "x" * most})
        with pytest.raises(ValueError, match=f"{name} must have at most {most} characters; got"):
            CardDetails(**{name: "x" * (most + 1)})

    def test_fields_that_are_missing_or_unknown(self):
        stored = EVALUATED.as_dict()
        with pytest.raises(ValueError, match=r"missing or unknown: \['encoder'\]"):
            CardFacts.from_dict({k: v for k, v in stored.items() if k != "encoder"})
        with pytest.raises(ValueError, match=r"missing or unknown: \['licence'\]"):
            CardFacts.from_dict({**stored, "details": {"licence": "mit"}})
        with pytest.raises(ValueError, match="CardDetails must be read from an object; got 'x'"):
            CardFacts.from_dict({**stored, "details": "x"})

    def test_what_is_not_there_is_what_it_is_by_default(self):
        stored = {key: EVALUATED.as_dict()[key] for key in ("encoder", "recipe")}
        assert CardFacts.from_dict(stored) == CardFacts(encoder=EVALUATED.encoder, recipe=RECIPE)

    def test_no_wrong_value_is_taken(self):
        """Every field refuses what has not its type, or takes it and gives it back."""
        draw = random.Random(0)
        wrong = [None, True, 1.5, -(10**400), math.nan, math.inf, "x", [], ["x"], {}, {"x": "y"}]
        refused = 0
        for part in ("encoder", "recipe", "training", "cost", "details"):
            for each in fields(getattr(EVALUATED, part)):
                for value in draw.sample(wrong, len(wrong)):
                    stored = EVALUATED.as_dict()
                    stored[part][each.name] = value
                    try:
                        facts = CardFacts.from_dict(stored)
                    except ValueError:
                        refused += 1
                    else:
                        assert facts.as_dict() == stored
        assert refused > 200


class TestDetails:
    @pytest.mark.parametrize("name", [f.name for f in fields(CardDetails) if f.name != "datasets"])
    def test_blank_text_is_refused(self, name):
        with pytest.raises(ValueError, match=f"{name} must say something; got ' '"):
            CardDetails(**{name: " \n"[:1]})
        with pytest.raises(ValueError, match=f"{name} must be text or left out; got 3"):
            CardDetails(**{name: 3})

    @pytest.mark.parametrize(
        "name",
        ["", "a b", "../x", "a/b/c", "/abs", "a\n", "-x", "user/", "x" * 97, *HOSTILE.values()],
    )
    def test_data_sets_are_hub_ids(self, name):
        with pytest.raises(ValueError, match="datasets must be Hub ids such as 'user/name'"):
            CardDetails(datasets=(name,))

    def test_ids_of_the_hub(self):
        CardDetails(datasets=("cifar10", "uoft-cs/cifar10", "a_b/c.d-1"))
        for name in ("user/name", "a-b/C.d_e"):
            assert is_hub_id(name)
        for name in ("name", "a/b/c", "../x", "a/..", "a/b\n", "a--b/c", "/a", "u/" + "x" * 99):
            assert not is_hub_id(name)


class TestEvaluations:
    def test_metrics_are_read(self):
        metrics = metrics_of(EVALUATION)
        assert metrics.knn == 0.5657
        assert metrics.alpha_ranks == (4, 100)
        assert metrics.few_labels["0.01"].mean == 0.312

    @pytest.mark.parametrize(
        "change",
        [
            {"knn": "<script>"},
            {"knn": math.nan},
            {"knn": True},
            {"effective_rank": None},
            {"num_test": None},
            {"alpha_r_squared": None},
            {"alpha_ranks": [4]},
            {"alpha_ranks": "4"},
            {"view_invariance": None},
            {"few_labels": {"a|b": {"mean": 1.0, "low": None, "high": None, "n": 1}}},
            {"few_labels": {"0.1": {"mean": None, "low": None, "high": None, "n": 1}}},
            {"few_labels": {"0.1": {"mean": 1.0}}},
            {"few_labels": [1]},
            {"eigenspectrum": [1.0, math.inf]},
            {"eigenspectrum": ["1.0"]},
            {"eigenspectrum": 3},
            {"data": 3},
            {"protocol": "x"},
            {"protocol": {"k": [1]}},
            {"protocol": {"temperature": math.nan}},
        ],
        ids=str,
    )
    def test_damaged_ones_are_refused(self, change):
        with pytest.raises(ValueError, match="an evaluation must hold metrics that are finite"):
            metrics_of({**EVALUATION, **change})
        with pytest.raises(ValueError, match="an evaluation must hold metrics that are finite"):
            replace(EVALUATED, evaluation={**EVALUATION, **change})


class TestWhatWasUsed:
    """A card quotes the run, where that differs from the configuration or the arguments."""

    def test_an_optimizer_of_the_user(self, model):
        given = {"given_optimizer": "SGD", "given_scheduler": "ConstantLR"}
        training = {**history_of().record["training"], **given}
        facts = facts_of(model, history_of(record={**history_of().record, "training": training}))
        assert facts.training.optimizer == "SGD"
        assert facts.training.schedule == "ConstantLR"
        assert facts.training.learning_rate is facts.training.weight_decay is None
        assert facts.training.warmup_steps is None

    def test_views_of_the_user(self, model):
        planned = asdict(ViewRecipe.for_config(model.config))
        for views, recipe, number in (
            ({**planned, "seed": 0, "dtype": "torch.float32"}, model.config.recipe, None),
            ({**planned, "num_views": 9}, "custom", 9),
        ):
            views = json.loads(json.dumps(views))
            facts = facts_of(model, history_of(record={**history_of().record, "views": views}))
            assert facts.recipe.recipe == recipe
            assert facts.recipe.num_views == (number or model.config.num_views)

    def test_the_best_weights(self, model):
        facts = facts_of(model, history_of(weights_step=3))
        assert facts.training.weights_step == 3
        assert "the weights are the best ones, of step 3" in render_card(facts)

    @pytest.mark.parametrize(
        ("start", "told"),
        [("a/b@v1", "a/b@v1"), ("resnet18.a1_in1k", "resnet18.a1_in1k"),
         ("C:/Users/me/w.pth", "not stated"), ("data/of/me", "not stated")],
    )  # fmt: skip
    def test_the_start_is_no_path(self, model, monkeypatch, start, told):
        monkeypatch.setattr(model.config, "initial_weights", start)
        assert facts_of(model, None).recipe.initial_weights == told
