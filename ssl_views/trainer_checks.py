"""What a Trainer checks before it trains."""

import os
import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from ssl_views.batchnorm import local_batchnorm_layers, synchronize_batchnorm
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.training_args import SSLViewsTrainingArguments

logger = logging.get_logger(__name__)

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")


def check_batch_fits(
    name: str, dataset: Any, batch_size: int, args: SSLViewsTrainingArguments
) -> None:
    """Refuse a data set that is empty, or smaller than a batch of all processes."""
    batch_size *= args.world_size
    sized = isinstance(dataset, Sized) and not isinstance(dataset, Mapping)
    if sized and len(dataset) == 0:
        raise ValueError(f"the {name} data set must hold images; got none. Check its source.")
    if args.dataloader_drop_last and sized and len(dataset) < batch_size:
        raise ValueError(
            f"a batch must not be larger than the data set; got {batch_size} images per {name} "
            f"step and {len(dataset)} images. Lower --per_device_{name}_batch_size."
        )


def check_processes(args: SSLViewsTrainingArguments) -> None:
    """Refuse several GPUs in one process, and notice a launcher that started one too few."""
    if args.n_gpu > 1:
        raise ValueError(
            "one process must use one GPU, or the loss would see a part of the batch only; got "
            f"{args.n_gpu}. Start with torchrun --nproc_per_node {args.n_gpu} -m ssl_views ..., or "
            "choose one with CUDA_VISIBLE_DEVICES=0."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) != args.world_size:
        raise ValueError(
            "processes that are started together must train together; WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}, and the arguments make it {args.world_size}. Set use_cpu "
            "where processes have no GPU of their own."
        )
    # accelerate names the place where its processes meet only if it was asked for several.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and args.world_size == 1 and "RANK" not in os.environ:
        logger.warning(
            "accelerate was asked for several processes and started one, as it does with --cpu but "
            "without --multi_cpu. Use torchrun --nproc_per_node N -m ssl_views ..."
        )


def synchronize(model: nn.Module, args: SSLViewsTrainingArguments) -> None:
    """Give BatchNorm the statistics of all processes, or say where it has its own."""
    if args.sync_batchnorm:
        synchronize_batchnorm(model, args.device.type)
    local = local_batchnorm_layers(model)
    if local:
        logger.warning(
            "%d BatchNorm layers (%s, ...) use the images of their own process only, so results "
            "depend on the number of processes. Set sync_batchnorm, or use a backbone without "
            "BatchNorm.",
            len(local),
            local[0],
        )


def warn_of_small_batch(num_images: int, dim: int) -> None:
    """Say when correlations are estimated from fewer images than there are dimensions."""
    if num_images < dim:
        logger.warning(
            "A step has %d images for a projector_dim of %d: a correlation is uncertain by %.2f, "
            "and the redundancy term by about %.1f per dimension. Raise "
            "per_device_train_batch_size (micro_batch_size saves memory), or lower projector_dim.",
            num_images,
            dim,
            num_images**-0.5,
            dim / num_images,
        )


def note_start(model: SSLViewsForPreTraining, args: SSLViewsTrainingArguments) -> None:
    """Write into the configuration that the model came from a checkpoint of another run."""
    source = model.config.name_or_path
    if not source:
        return
    if not Path(source).exists() and _HUB_ID.fullmatch(source):
        model.config.initial_weights = source
    elif not Path(source).resolve().is_relative_to(Path(str(args.output_dir)).resolve()):
        model.config.initial_weights = "a checkpoint in a local folder"
