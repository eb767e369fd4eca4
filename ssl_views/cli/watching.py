"""How often a run is evaluated, so that it can be watched at little cost."""

from transformers.trainer_utils import IntervalStrategy

from ssl_views.training_args import SSLViewsTrainingArguments

_MOST = 20
_PER_TRAINED_VIEW = 3  # forward passes that training on a view takes


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


def describe_evaluations(args: SSLViewsTrainingArguments, share: float) -> str:
    """Say how often the run is evaluated."""
    if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps is not None:
        unit = "steps" if args.eval_steps >= 1 else "of the steps"
        return f"evaluated every {args.eval_steps:g} {unit}, without test labels"
    if args.eval_strategy != IntervalStrategy.NO:
        return f"evaluated every {args.eval_strategy.value}, without test labels"
    why = "evaluation_share is 0" if share == 0 else "the run is short; --eval_steps N does it"
    return f"not evaluated while it trains: {why}"
