"""A dense task: name every pixel, by a small head on the feature maps of an exported encoder.

python examples/segmentation.py runs/digits/encoder --output_dir runs/segmentation

The images are made here, without any download: digits at random places of a noisy canvas. An
encoder for them: ssl-views pretrain --output_dir runs/digits --num_train_epochs 10, then ssl-views
export runs/digits runs/digits/encoder. The encoder stays as it is and only the head learns; the
same head on an encoder that never learned shows what pretraining is worth.
"""

import argparse
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from ssl_views.data.sources import load_train_and_test
from ssl_views.timm_backbone import TimmEncoderBackbone

NUM_CLASSES = 11  # ten digits and the background
COLORS = np.random.default_rng(3).integers(60, 256, (NUM_CLASSES, 3)).astype(np.uint8)
COLORS[-1] = 0


def make_canvases(digits, num_canvases, seed, size=64):
    """Draw digits on noise; return pixels (N, size, size) in [0, 1] and classes of the pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0.1, 0.1, (num_canvases, size, size))
    classes = np.full(pixels.shape, NUM_CLASSES - 1)
    side = size // 4
    for canvas, truth in zip(pixels, classes, strict=True):
        for cell in rng.permutation(9)[: rng.integers(2, 6)]:  # of a grid, so that none overlap
            row, column = (np.array(divmod(cell, 3)) * size) // 3 + rng.integers(0, 6, 2)
            digit = digits[int(rng.integers(len(digits)))]
            image = digit["image"].convert("L").resize((side, side), Image.Resampling.BILINEAR)
            ink = np.asarray(image, dtype=np.float32) / 255
            part = np.s_[row : row + side, column : column + side]
            canvas[part] += ink * rng.uniform(0.6, 1)
            truth[part][ink > 0.3] = digit["label"]
    return pixels.clip(0, 1).astype(np.float32), classes


class Segmenter(nn.Module):
    """A head of two layers on the maps of several stages, brought to the size of the first."""

    def __init__(self, encoder, upscale, width=128):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.upscale = upscale
        self.head = nn.Sequential(
            nn.BatchNorm2d(sum(encoder.channels)),
            nn.Conv2d(sum(encoder.channels), width, 1),
            nn.ReLU(),
            nn.Conv2d(width, NUM_CLASSES, 1),
        )

    def train(self, mode=True):
        """Let only the head train: BatchNorm of the encoder keeps its statistics."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values, labels=None):
        """Return logits (N, classes, H, W), and the loss where there are labels (N, H, W)."""
        large = F.interpolate(pixel_values, scale_factor=self.upscale, mode="bilinear")
        first, *others = self.encoder(large).feature_maps
        others = [F.interpolate(x, first.shape[2:], mode="bilinear") for x in others]
        logits = self.head(torch.cat([first, *others], dim=1))
        logits = F.interpolate(logits, pixel_values.shape[2:], mode="bilinear")
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def mean_iou(predicted, truth):
    """Return the mean over classes of intersection / union, over the pixels of all images."""
    counts = np.bincount((truth * NUM_CLASSES + predicted).ravel(), minlength=NUM_CLASSES**2)
    counts = counts.reshape(NUM_CLASSES, NUM_CLASSES)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return (counts.diagonal() / np.maximum(union, 1)).mean()


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "encoder", help="folder that ssl-views export wrote, or its name on the Hub"
    )
    parser.add_argument("--out_indices", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_canvases", type=int, default=1000)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/segmentation"))
    args = parser.parse_args(argv)

    set_seed(0)
    trained = TimmEncoderBackbone.from_pretrained(args.encoder, out_indices=args.out_indices)
    untrained = TimmEncoderBackbone(trained.config)
    known = trained.config.pretrained_cfg
    channels, image_size, _ = known["input_size"]
    mean, std = (torch.tensor(known[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def rows(digits, num_canvases, seed):
        pixels, classes = make_canvases(digits, num_canvases, seed)
        for image, truth in zip(torch.from_numpy(pixels), torch.from_numpy(classes), strict=True):
            yield {
                "pixel_values": (image.expand(channels, -1, -1) - mean) / std,
                "labels": truth,
            }

    digits, other_digits = (
        split.cast_column("image", datasets.Image()) for split in load_train_and_test("digits")
    )
    train = list(rows(digits, args.num_canvases, seed=1))
    test = list(rows(other_digits, args.num_canvases // 5, seed=2))
    truth = np.stack([row["labels"].numpy() for row in test])
    predictions = {}
    for name, encoder in {"untrained": untrained, "pretrained": trained}.items():
        set_seed(0)
        trainer = Trainer(
            # Digits are a quarter of the canvas; the encoder knows them as large as its images.
            Segmenter(encoder, upscale=image_size / (truth.shape[-1] // 4)),
            TrainingArguments(
                str(args.output_dir),
                per_device_train_batch_size=args.batch_size,
                max_steps=args.max_steps,
                learning_rate=3e-3,
                lr_scheduler_type="cosine",
                dataloader_pin_memory=torch.cuda.is_available(),
                logging_steps=100,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=train,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1),
        )
        trainer.train()
        predictions[name] = trainer.predict(test).predictions
        print(f"{name} encoder, frozen: mean IoU {mean_iou(predictions[name], truth):.1%}")

    images = torch.stack([(row["pixel_values"] * std + mean)[0] for row in test[:6]])
    shown = [np.repeat((images.numpy()[..., None] * 255).astype(np.uint8), 3, axis=-1)]
    shown += [COLORS[classes[:6]] for classes in (truth, *predictions.values())]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in shown])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "segmentation.png"
    enlarged = picture.shape[1] * 2, picture.shape[0] * 2
    Image.fromarray(picture).resize(enlarged, Image.Resampling.NEAREST).save(path)
    print(f"{path}: images, truth, and what the heads say on the two encoders")


if __name__ == "__main__":
    main()
