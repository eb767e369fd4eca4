"""Only the loss and the views, in a loop of your own.

python examples/loss_in_your_own_loop.py
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader

from ssl_views import (
    BarlowTwinsLoss,
    MultiViewCollator,
    MultiViewDataset,
    Projector,
    ViewRecipe,
    load_images,
)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args(argv)

    recipe = ViewRecipe.named("digits", num_views=4)
    backbone = timm.create_model("test_resnet", num_classes=0, in_chans=1)
    projector = Projector(backbone.head_hidden_size, 64)
    loss = BarlowTwinsLoss()
    parameters = [*backbone.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)

    dataset = MultiViewDataset(load_images("digits"))
    loader = DataLoader(
        dataset, batch_size=128, shuffle=True, drop_last=True, collate_fn=MultiViewCollator(recipe)
    )
    for epoch in range(args.epochs):
        dataset.epoch = epoch
        for batch in loader:
            views = batch["pixel_values"].transpose(0, 1)  # (V, B, C, S, S)
            embeddings = projector(backbone(views.flatten(0, 1))).unflatten(0, views.shape[:2])
            total, terms = loss(embeddings)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(
            f"epoch {epoch}:", {name: f"{float(term.detach()):.3g}" for name, term in terms.items()}
        )


if __name__ == "__main__":
    main()
