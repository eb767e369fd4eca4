"""`ssl-views pretrain`: from images to a trained backbone."""

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import set_seed

from ssl_views.cli.arguments import (
    ModelArguments,
    SourceArguments,
    ViewArguments,
    WatchArguments,
    command_line,
    data_flags,
    make_parser,
    read_arguments,
)
from ssl_views.cli.before_and_after import BeforeAndAfter
from ssl_views.cli.console import say
from ssl_views.cli.setup import describe_views, follow_encoder, image_limits, make_config
from ssl_views.cli.watching import choose_watched, describe_evaluations, plan_evaluations
from ssl_views.data.cache import PixelCache
from ssl_views.data.collator import MultiViewCollator
from ssl_views.data.dataset import MultiViewDataset, MultiViewIterableDataset
from ssl_views.data.image_limits import ImageLimits
from ssl_views.data.sources import DIGITS, load_images, load_train_and_test, take_fraction
from ssl_views.encoders import from_encoder
from ssl_views.evaluation.features import Extraction
from ssl_views.hub import PublishError
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.run_record import MODEL_FIELDS
from ssl_views.trainer import SSLViewsTrainer
from ssl_views.training_args import SSLViewsTrainingArguments
from ssl_views.view_engines import engine_name
from ssl_views.views import ViewRecipe

# What `ssl-views pretrain` alone does: minutes on two CPU cores.
_DIGITS_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "num_train_epochs": 40,
    "projector_dim": 64,
    "save_strategy": "no",
}
_SHUFFLE_BUFFER = 2000
ARGUMENTS = (
    SourceArguments, ViewArguments, ModelArguments, WatchArguments, SSLViewsTrainingArguments,
)  # fmt: skip


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "pretrain",
        "Pretrain a timm backbone on images without labels. Flags may also stand in a YAML file: "
        "ssl-views pretrain run.yaml",
        *ARGUMENTS,
    )
    presets = {DIGITS: _DIGITS_DEFAULTS}
    source, views, model_args, watch, args = read_arguments(parser, argv, presets)
    limits = image_limits(source)
    set_seed(args.seed)
    watched = compared = None
    if source.streaming:
        train = _stream(source, watch, args)
    else:
        rows, test = load_train_and_test(
            source.dataset,
            split=source.split,
            image_column=source.image_column,
            test_split=source.test_split,
            allow_remote_images=source.allow_remote_images,
        )
        train = take_fraction(rows, source.fraction, args.seed)
        same = watch.probe_split in (None, source.split)
        labelled = rows if same else _labelled(source, str(watch.probe_split))
        extraction = Extraction(num_threads=max(1, args.view_threads), limits=limits)
        compared = BeforeAndAfter(labelled, test, extraction) if watch.before_and_after else None
        watched = choose_watched(labelled, test, watch, args)
        most = max(1, len(watched.evaluated) // args.world_size)
        args.per_device_eval_batch_size = min(args.per_device_eval_batch_size, most)
    views, model_args = follow_encoder(views, model_args)
    config = make_config(train, source.dataset, views, model_args, limits=limits)
    dataset: Any
    if source.streaming:
        dataset = MultiViewIterableDataset(train, limits=limits)
    else:
        cache = _cache(train, source, config.num_channels, args, limits)
        dataset = MultiViewDataset(train, cache=cache)
    if watched:
        plan_evaluations(
            args,
            share=watch.evaluation_share,
            num_images=len(train),
            num_views=config.num_views,
            cost=watched.num_passes(config.num_views),
        )
    if model_args.from_encoder is None:
        model = SSLViewsForPreTraining(config, pretrained_backbone=model_args.pretrained_backbone)
    else:
        fields = {name: getattr(config, name) for name in MODEL_FIELDS if name != "initial_weights"}
        model = from_encoder(model_args.from_encoder, **fields)
    trainer = SSLViewsTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=MultiViewDataset(watched.evaluated, epoch=0) if watched else None,
        data_collator=MultiViewCollator(ViewRecipe.for_config(config), args.seed, limits=limits),
        probe_train=watched.compared if watched else None,
        probe_test=watched.classified if watched else None,
    )
    checkpoint = trainer.choose_checkpoint(_resume_from(args))
    main = trainer.is_world_process_zero()
    if main:
        count = "a stream of" if source.streaming else f"{len(train):,}"
        held_out = "" if source.streaming else f", {len(test):,} others to evaluate"
        say(f"{count} images from {source.dataset}{held_out}; {describe_views(config)}")
        say(f"views by the {engine_name('torch' if args.render_on_device else 'auto')} engine")
        say(f"{config.backbone}, projector {config.projector_dim}, loss {config.loss}")
        if watched:
            say(describe_evaluations(args, watch))
    if compared:  # every process extracts a share of the features
        start = "untrained" if model.config.initial_weights is None else "pretrained"
        compared.before(model.ssl_views, f"{start} backbone")
    output_dir = Path(str(args.output_dir))
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    if main:
        trainer.save_model(str(output_dir), _internal_call=True)
        trainer.save_state()
        say(f"saved to {output_dir}")
        if trainer.bad_images:
            say(f"{len(trainer.bad_images)} images could not be used: {trainer.bad_images.path}")
    if compared:
        compared.after(model.ssl_views)
    if main:
        if compared:
            compared.report(output_dir)
        say("\nNext:")
        say("  " + command_line("evaluate", str(output_dir), *data_flags(source)))
        say("  " + command_line("export", str(output_dir), "encoder"))
    if main and args.push_to_hub:  # other processes do not wait
        _publish(trainer, anew=bool(trained.metrics))


def _publish(trainer: SSLViewsTrainer, *, anew: bool) -> None:
    """Publish what was trained, after everything else is done and saved."""
    by_hand = "ssl-views export and ssl-views publish do that"
    if not anew:
        say(f"\nnothing was trained, so nothing is published; {by_hand}")
        return
    try:
        published = trainer.push_to_hub()
    except PublishError:
        say(f"\nthe run is saved, but was not published; {by_hand}")
        raise
    if published is not None:
        say(f"\npublished and verified: {published.url}")


def _resume_from(args: SSLViewsTrainingArguments) -> str | bool | None:
    """Return what the flag means to `SSLViewsTrainer.train`."""
    words: dict[str, bool | None] = {"false": None, "none": None, "true": True}
    wanted = str(args.resume_from_checkpoint)
    return words.get(wanted.lower(), wanted)


def _cache(
    rows: Any,
    source: SourceArguments,
    num_channels: int,
    args: SSLViewsTrainingArguments,
    limits: ImageLimits,
) -> PixelCache | None:
    """Decode all images once, if asked for."""
    if source.cache == "none":
        return None

    def say_size(num_bytes: int) -> None:
        if args.process_index == 0:
            limit = f"at most {source.cache_limit_gb:g} are allowed"
            say(f"decoded images take {num_bytes / 1e9:.2f} GB; {limit}")

    # One process of a node fills a folder, and the others open it.
    in_memory = source.cache == "memory"
    with nullcontext() if in_memory else args.main_process_first(desc="decoding images"):
        return PixelCache.of(
            MultiViewDataset(rows),
            num_channels,
            limit_bytes=int(source.cache_limit_gb * 1e9),
            folder=None if in_memory else source.cache,
            num_threads=max(1, args.view_threads),
            on_size=say_size,
            limits=limits,
        )


def _labelled(source: SourceArguments, split: str) -> Any:
    return load_images(
        source.dataset,
        split=split,
        image_column=source.image_column,
        allow_remote_images=source.allow_remote_images,
    )


def _stream(source: SourceArguments, watch: WatchArguments, args: SSLViewsTrainingArguments) -> Any:
    if args.max_steps <= 0:
        raise ValueError(
            "streaming has no length, so the number of steps must be given. Set --max_steps."
        )
    given = [f.name for f in fields(watch) if getattr(watch, f.name) != f.default]
    given += ["test_split"] if source.test_split is not None else []
    if ignored := [name for name in given if name != "before_and_after"]:
        raise ValueError(
            f"a streamed run evaluates nothing, so {ignored[0]} would be ignored. Leave it out, "
            "and evaluate afterwards."
        )
    if source.cache != "none":
        raise ValueError(
            f"cache needs all images at the start; streaming has none, and got {source.cache!r}. "
            "Use one of the two."
        )
    if source.fraction != 1:
        raise ValueError(
            "fraction needs the length of the data set; streaming has none. Use one of the two."
        )
    rows = load_images(
        source.dataset,
        split=source.split,
        image_column=source.image_column,
        streaming=True,
        allow_remote_images=source.allow_remote_images,
    )
    return rows.shuffle(seed=args.seed, buffer_size=_SHUFFLE_BUFFER)
