"""How often a run is evaluated, so that it can be watched at little cost."""

from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import IntervalStrategy

from ssl_views.cli.arguments import WatchArguments
from ssl_views.data.sources import hold_out, take_fraction
from ssl_views.evaluation.features import COMPARED_VIEWS
from ssl_views.evaluation.probe import NUM_VIEW_IMAGES
from ssl_views.training_args import SSLViewsTrainingArguments

_MOST = 20
_PER_TRAINED_VIEW = 3  # forward passes that training on a view takes


@dataclass(frozen=True)
class Watched:
    """Images that evaluations during training look at.

    Attributes:
        evaluated: rows whose views the loss is computed of.
        compared: rows that kNN compares with.
        classified: rows that kNN classifies.
    """

    evaluated: Any
    compared: Any
    classified: Any

    def num_passes(self, num_views: int) -> int:
        """Return how many views one evaluation gives to the backbone."""
        probed = len(self.compared) + len(self.classified)
        return num_views * len(self.evaluated) + probed + COMPARED_VIEWS * NUM_VIEW_IMAGES


def choose_watched(
    train: Any, test: Any, watch: WatchArguments, args: SSLViewsTrainingArguments
) -> Watched:
    """Choose what to look at: of all training images, whatever fraction is trained on.

    Raises:
        ValueError: if a number is out of range, or a curve of test images could choose anything.
    """
    for name in ("probe_images", "eval_images"):
        if getattr(watch, name) < 1:
            raise ValueError(
                f"{name} must be at least 1; got {getattr(watch, name)}. --evaluation_share 0 "
                "turns evaluations during training off."
            )
    if watch.probe_test and (args.load_best_model_at_end or args.metric_for_best_model):
        raise ValueError(
            "probe_test measures with test labels, by which nothing may be chosen; got "
            "load_best_model_at_end or metric_for_best_model too. Leave one out."
        )
    looked_at = _at_most(train, watch.probe_images)
    probed = (looked_at, _at_most(test, watch.probe_images)) if watch.probe_test else None
    return Watched(_at_most(test, watch.eval_images), *(probed or hold_out(looked_at)))


def _at_most(rows: Any, most: int) -> Any:
    """Return so many rows at most, the same share of every class."""
    return take_fraction(rows, min(1.0, most / len(rows)))


def plan_evaluations(
    args: SSLViewsTrainingArguments, *, share: float, num_images: int, num_views: int, cost: int
) -> None:
    """Set how often to evaluate, evenly over the run; flags of the user win.

    As often as keeps the views that evaluations give to the backbone below a share of what training
    does, counted in forward passes, but at most 20 times.

    Args:
        args: of the run; its interval is set.
        share: of the run's time that evaluations may take, about.
        num_images: training images.
        num_views: views per image.
        cost: views that one evaluation gives to the backbone.
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"evaluation_share must be in [0, 1]; got {share}. 0 turns evaluations off."
        )
    if args.eval_strategy != IntervalStrategy.NO:
        return
    if args.eval_steps:
        args.eval_strategy = IntervalStrategy.STEPS
        return
    batch = args.train_batch_size * args.world_size
    steps = int(args.max_steps)
    if steps <= 0:
        steps = int(num_images // batch * args.num_train_epochs)
    trained = steps * batch * num_views * _PER_TRAINED_VIEW
    number = min(_MOST, steps, int(share * trained / cost))
    if number > 0:
        args.eval_strategy = IntervalStrategy.STEPS
        args.eval_steps = -(-steps // number)


def describe_evaluations(args: SSLViewsTrainingArguments, watch: WatchArguments) -> str:
    """Say how often the run is evaluated."""
    labels = "with" if watch.probe_test else "without"
    if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps is not None:
        unit = "steps" if args.eval_steps >= 1 else "of the steps"
        return f"evaluated every {args.eval_steps:g} {unit}, {labels} test labels"
    if args.eval_strategy != IntervalStrategy.NO:
        return f"evaluated every {args.eval_strategy.value}, {labels} test labels"
    off = watch.evaluation_share == 0
    why = "evaluation_share is 0" if off else "the run is short; --eval_steps N does it"
    return f"not evaluated while it trains: {why}"
