"""One batch over several GPUs: the loss, and the weights, are those of one GPU with all of it.

torchrun --nproc_per_node 2 examples/several_gpus.py path/to/images --batch_size 512
python examples/several_gpus.py path/to/images --batch_size 512

Nothing in here depends on the number of processes but their share of the batch.
"""

import argparse
import os

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
    export_encoder,
    load_images,
)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=512, help="of all processes together")
    parser.add_argument("--max_steps", type=int, default=10_000)
    parser.add_argument("--output_dir", default="runs/several_gpus")
    args = parser.parse_args(argv)

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if args.batch_size % num_processes:
        parser.error(f"--batch_size must be a multiple of {num_processes}, one part per process")
    set_seed(42)
    config = SSLViewsConfig(backbone=args.backbone, image_size=args.image_size, recipe="imagenet")
    trainer = SSLViewsTrainer(
        SSLViewsForPreTraining(config),
        SSLViewsTrainingArguments(
            args.output_dir,
            per_device_train_batch_size=args.batch_size // num_processes,
            max_steps=args.max_steps,
            logging_steps=0.01,  # of all steps
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=MultiViewDataset(load_images(args.images)),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
    )
    trainer.train("auto")
    if trainer.is_world_process_zero():
        export_encoder(trainer.model, f"{args.output_dir}/encoder")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(f"processes: {num_processes}, images per step: {args.batch_size}")
        print(f"final loss: {losses[-1]:.6g}")


if __name__ == "__main__":
    main()
