"""A folder of unlabeled images and one GPU: pretrain an encoder, then find similar images with it.

python examples/own_images.py path/to/images --output_dir runs/mine
python examples/own_images.py path/to/images --output_dir runs/mine --query path/to/one.jpg

A run that was stopped goes on with the same command. What is in the output folder is not made
again, so the second command only searches; delete index.pt when images have been added. If a batch
does not fit in memory, add --micro_batch_size 64.
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from torch.utils.data import DataLoader
from tqdm import tqdm
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
)
from ssl_views.data.sources import hold_out, load_train_and_test, take_fraction


def pretrain(args):
    set_seed(42)
    train, test = load_train_and_test(args.images)  # a fifth, at most 5,000, is held out
    # Evaluations report the rank and spectrum of features; in class folders, kNN accuracy too. Only
    # training images may vote and be voted on, for a checkpoint may be chosen by it.
    probe_train, probe_test = hold_out(take_fraction(train, min(1.0, 5000 / len(train))))
    config = SSLViewsConfig(backbone=args.backbone, image_size=args.image_size, recipe="imagenet")
    trainer = SSLViewsTrainer(
        SSLViewsForPreTraining(config),
        SSLViewsTrainingArguments(
            args.output_dir,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=min(args.batch_size, len(test)),
            micro_batch_size=args.micro_batch_size,
            eval_strategy="epoch",
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=MultiViewDataset(train),
        eval_dataset=MultiViewDataset(test, epoch=0),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
        probe_train=probe_train,
        probe_test=probe_test,
    )
    trainer.train("auto")
    trainer.save_model()  # for ssl-views evaluate and compare
    trainer.save_state()
    export_encoder(trainer.model, f"{args.output_dir}/encoder")


@torch.inference_mode()
def search(args, index):
    """Compare a query with all images by the cosine of features. Needs timm only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = timm.create_model(f"local-dir:{args.output_dir}/encoder", pretrained=True)
    encoder = encoder.eval().to(device)
    transform = create_transform(**resolve_model_data_config(encoder))
    if not index.is_file():
        images = ImageDataset(args.images, transform=transform)
        loader = DataLoader(images, args.batch_size, num_workers=args.num_workers)
        features = [F.normalize(encoder(x.to(device))).cpu() for x, _ in tqdm(loader, "index")]
        names = images.filenames(absolute=True)
        torch.save({"names": names, "features": torch.cat(features)}, index)
    known = torch.load(index)
    query = args.query or known["names"][0]
    pixels = transform(Image.open(query).convert("RGB"))[None].to(device)
    cosines = (known["features"] @ F.normalize(encoder(pixels)).cpu().T).flatten()
    print(f"nearest to {query}:")
    for cosine, place in zip(*cosines.topk(min(args.neighbours, len(cosines))), strict=True):
        print(f"{cosine:.3f}  {known['names'][place]}")


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("images", help="a folder")
    parser.add_argument("--query", help="an image, in the folder or not; by default its first")
    parser.add_argument("--neighbours", type=int, default=6)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--micro_batch_size", type=int)
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--num_workers", type=int, default=4, help="processes that read the index")
    parser.add_argument("--output_dir", default="runs/own_images")
    args = parser.parse_args(argv)

    if not Path(args.output_dir, "encoder").is_dir():
        pretrain(args)
    search(args, Path(args.output_dir, "index.pt"))


if __name__ == "__main__":
    main()
