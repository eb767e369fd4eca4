"""Start from timm's pretrained weights, and go on with your own images.

python examples/pretrained_start.py path/to/images --backbone resnet50 --output_dir runs/continued

If the images lie in class folders, the kNN accuracy before and after says whether it was worth it.
"""

import argparse

import timm
import torch
from transformers import set_seed

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
    evaluate_features,
    export_encoder,
    labelled_features,
)
from ssl_views.data.sources import load_train_and_test, take_fraction


def evaluate(model, train, test):
    return evaluate_features(labelled_features(model.ssl_views, train, test), linear_probe=False)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=20)
    # A tenth of what a new backbone gets: larger steps would lose what it knows.
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--output_dir", default="runs/continued")
    args = parser.parse_args(argv)

    set_seed(42)
    train, test = load_train_and_test(args.images)
    pretrained = timm.get_pretrained_cfg(args.backbone)
    config = SSLViewsConfig(
        backbone=args.backbone,
        image_size=args.image_size,
        recipe="imagenet",
        recipe_args={"mean": list(pretrained.mean), "std": list(pretrained.std)},
    )
    trainer = SSLViewsTrainer(
        SSLViewsForPreTraining(config, pretrained_backbone=True),
        SSLViewsTrainingArguments(
            args.output_dir,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size,
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=MultiViewDataset(train),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
    )
    known = take_fraction(train, min(1.0, 5000 / len(train)))
    before = evaluate(trainer.model, known, test)
    trainer.train("auto")
    after = evaluate(trainer.model, known, test)
    folder = export_encoder(trainer.model, f"{args.output_dir}/encoder")
    if before.knn is not None:  # it needs labels
        print(f"knn: {before.knn:.1%} before, {after.knn:.1%} after")
    print(f"effective_rank: {before.effective_rank:.3g} before, {after.effective_rank:.3g} after")
    print("encoder in", folder)


if __name__ == "__main__":
    main()
