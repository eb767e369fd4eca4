"""Pretrain with the stock Trainer on a folder of images, then export the encoder.

python examples/stock_trainer.py path/to/images --max_steps 1000
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments

from ssl_views import (
    EpochCallback,
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    ViewRecipe,
    export_encoder,
    load_images,
)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--output_dir", default="runs/stock")
    args = parser.parse_args(argv)

    config = SSLViewsConfig(
        backbone=args.backbone, image_size=args.image_size, num_views=4, recipe="imagenet"
    )
    dataset = MultiViewDataset(load_images(args.images))
    trainer = Trainer(
        SSLViewsForPreTraining(config),
        TrainingArguments(
            args.output_dir,
            per_device_train_batch_size=args.batch_size,
            max_steps=args.max_steps,
            learning_rate=1e-3,
            dataloader_drop_last=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            report_to="none",
        ),
        train_dataset=dataset,
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
        callbacks=[EpochCallback(dataset)],
    )
    trainer.train()
    print("encoder in", export_encoder(trainer.model, f"{args.output_dir}/encoder"))


if __name__ == "__main__":
    main()
