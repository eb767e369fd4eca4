"""Fine-tune an exported encoder with labels: stock transformers, which loads it as any timm model.

python examples/fine_tune.py encoder --dataset path/or/hub-id
python examples/fine_tune.py encoder --dataset path/or/hub-id --fraction 0.1

ssl_views only loads the data here. The processor resizes and normalizes as in pretraining; its
train_transforms crop and flip at random.
"""

import argparse

import datasets
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from ssl_views.data.sources import load_train_and_test, take_fraction


def transformed(rows, transform, mode):
    """Return rows {"pixel_values", "label"}, made when they are read."""

    def apply(batch):
        pixels = [transform(image.convert(mode)) for image in batch["image"]]
        return {"pixel_values": pixels, "label": batch["label"]}

    return rows.cast_column("image", datasets.Image()).with_transform(apply)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "encoder", help="folder that ssl-views export wrote, or its name on the Hub"
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the labels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--output_dir", default="runs/fine_tune")
    args = parser.parse_args(argv)

    set_seed(42)
    train, test = load_train_and_test(args.dataset)
    train = take_fraction(train, args.fraction)
    classes = train.features.get("label")
    if not isinstance(classes, datasets.ClassLabel):
        parser.error(f"{args.dataset} has no column of classes")
    names = classes.names
    processor = AutoImageProcessor.from_pretrained(args.encoder)
    model = AutoModelForImageClassification.from_pretrained(
        args.encoder,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    mode = "L" if processor.data_config["input_size"][0] == 1 else "RGB"
    trainer = Trainer(
        model,
        TrainingArguments(
            args.output_dir,
            per_device_train_batch_size=args.batch_size,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            weight_decay=0.05,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            bf16=torch.cuda.is_available(),
            dataloader_num_workers=args.num_workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,  # the model takes no "image", which the transform does
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=transformed(train, processor.train_transforms, mode),
        eval_dataset=transformed(test, processor.val_transforms, mode),
        data_collator=default_data_collator,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    print(f"{len(train):,} labelled images, {len(test):,} to evaluate")
    print(f"accuracy {before:.1%} before (a new head on the encoder), {after:.1%} after")
    print(f"classifier in {args.output_dir}")


if __name__ == "__main__":
    main()
