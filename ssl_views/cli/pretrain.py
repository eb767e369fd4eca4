"""`ssl-views pretrain`: from images to a trained backbone."""

import json
import shlex
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ssl_views.cli.arguments import ModelArguments, SourceArguments, ViewArguments, command_line, make_parser, read_arguments
from ssl_views.cli.console import metrics_table, say
from ssl_views.cli.setup import describe_views, make_config
from ssl_views.data.loading import MultiViewCollator, MultiViewDataset, MultiViewIterableDataset
from ssl_views.data.sources import DIGITS, load_images, load_train_and_test, take_fraction
from ssl_views.evaluation.features import extract_features, labels_of, raw_pixels
from ssl_views.evaluation.report import LabelledFeatures, Metrics, evaluate_features
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.trainer import SSLViewsTrainer
from ssl_views.training_args import SSLViewsTrainingArguments
from ssl_views.views import ViewRecipe

# What `ssl-views pretrain` alone does: minutes on two CPU cores.
_DIGITS_DEFAULTS: dict[str, Any] = {
    "backbone": "test_resnet",
    "per_device_train_batch_size": 128,
    "num_train_epochs": 40,
    "projector_dim": 64,
}
_PROBE_TRAIN, _PROBE_TEST = 5000, 2000
_SHUFFLE_BUFFER = 2000


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "pretrain",
        "Pretrain a timm backbone on images without labels. Flags may also stand in a YAML file: ssl-views pretrain run.yaml",
        SourceArguments, ViewArguments, ModelArguments, SSLViewsTrainingArguments,
    )  # fmt: skip
    if read_arguments(parser, argv)[0].dataset == DIGITS:
        parser.set_defaults(**_DIGITS_DEFAULTS)
    source, views, model_args, args = read_arguments(parser, argv)
    if source.streaming:
        _check_streaming(source, args)
        train = load_images(source.dataset, split=source.split, image_column=source.image_column, streaming=True)
        labelled, test = None, None
    else:
        labelled, test = load_train_and_test(
            source.dataset, split=source.split, image_column=source.image_column, test_split=source.test_split
        )
        train = take_fraction(labelled, source.fraction, args.seed)
    config = make_config(train, source.dataset, views, model_args)
    recipe = ViewRecipe.for_config(config)
    set_seed(args.seed)
    model = SSLViewsForPreTraining(config, pretrained_backbone=model_args.pretrained_backbone)
    if source.streaming:
        dataset: Any = MultiViewIterableDataset(train.shuffle(seed=args.seed, buffer_size=_SHUFFLE_BUFFER))
    else:
        dataset = MultiViewDataset(train)
    evaluated = {}
    if labelled is not None and test is not None:
        labelled, test = _at_most(labelled, _PROBE_TRAIN), _at_most(test, _PROBE_TEST)
        evaluated = {"eval_dataset": MultiViewDataset(test, epoch=0), "probe_train": labelled, "probe_test": test}
        args.per_device_eval_batch_size = min(args.per_device_eval_batch_size, len(test))
    trainer = SSLViewsTrainer(
        model, args, train_dataset=dataset, data_collator=MultiViewCollator(recipe, args.seed), **evaluated
    )
    first = trainer.is_world_process_zero()
    if first:
        count = "a stream of" if source.streaming else f"{len(train):,}"
        say(f"{count} images from {source.dataset}; {describe_views(config)}")
        say(f"{config.backbone}, projector {config.projector_dim}, loss {config.loss}; {args.output_dir}")
    untrained = _features(model, labelled, test, recipe) if first else None
    resume = args.resume_from_checkpoint
    if resume is not None and resume.lower() == "true":
        resume = get_last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    if first:
        _finish(model, args, source, labelled, test, recipe, untrained)


def _check_streaming(source: SourceArguments, args: SSLViewsTrainingArguments) -> None:
    if args.max_steps <= 0:
        raise ValueError("streaming has no length, so the number of steps must be given. Set --max_steps.")
    if source.fraction != 1:
        raise ValueError("fraction needs the length of the data set; streaming has none. Use one of the two.")


def _at_most(rows: Any, count: int) -> Any:
    return take_fraction(rows, min(1.0, count / len(rows)))


def _features(model: SSLViewsForPreTraining, train: Any, test: Any, recipe: ViewRecipe) -> LabelledFeatures | None:
    if train is None:
        return None
    parts = [extract_features(model.ssl_views, rows, recipe) for rows in (train, test)]
    return LabelledFeatures(*parts, labels_of(train), labels_of(test))


def _finish(
    model: SSLViewsForPreTraining,
    args: SSLViewsTrainingArguments,
    source: SourceArguments,
    train: Any,
    test: Any,
    recipe: ViewRecipe,
    untrained: LabelledFeatures | None,
) -> None:
    """Save the model, compare it with what there was before, and say what to do next."""
    output_dir = Path(str(args.output_dir))
    model.save_pretrained(output_dir)
    say(f"saved to {output_dir}")
    if untrained is not None:
        pixels = LabelledFeatures(
            raw_pixels(train, recipe), raw_pixels(test, recipe), untrained.train_labels, untrained.test_labels
        )
        trained = _features(model, train, test, recipe)
        assert trained is not None
        metrics: dict[str, Metrics] = {
            "raw pixels": evaluate_features(pixels),
            "untrained backbone": evaluate_features(untrained),
            "trained backbone": evaluate_features(trained),
        }
        say(f"\n{metrics_table(metrics)}")
        say(f"one clean view; {len(train):,} images to compare with, {len(test):,} to evaluate; kNN: k = 20, temperature 0.1")
        if untrained.train_labels is None:
            say("The images have no labels, so there is no accuracy.")
        summary = {name: m.as_dict() for name, m in metrics.items()}
        (output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    dataset = shlex.quote(source.dataset)
    say("\nNext:")
    say("  " + command_line("evaluate", shlex.quote(str(output_dir)), "--dataset", dataset))
    say("  " + command_line("export", shlex.quote(str(output_dir)), "encoder"))
