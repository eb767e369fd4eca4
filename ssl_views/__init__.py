"""Pretrain any timm backbone on unlabeled images with small projectors and many views.

Importing registers the configuration and models with transformers' Auto classes, and ResNets for
small images with timm, and does nothing else. What needs `datasets` or the Trainer is imported when
first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.loss_modules import BarlowTwinsLoss, KernelLoss, VICRegLoss
from ssl_views.losses import LossTerms, barlow_twins_loss, kernel_loss, vicreg_loss
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining, SSLViewsModel, SSLViewsOutput
from ssl_views.projector import Projector
from ssl_views.spectrum import (
    effective_rank,
    eigenspectrum,
    fit_power_law,
    invariance_per_dimension,
    lidar,
)
from ssl_views.timm_backbone import TimmEncoderBackbone
from ssl_views.view_records import ViewRecords
from ssl_views.views import ViewRecipe

if TYPE_CHECKING:
    from ssl_views.callbacks import EpochCallback
    from ssl_views.card_facts import CardDetails
    from ssl_views.data.bad_images import BadImages
    from ssl_views.data.cache import PixelCache
    from ssl_views.data.collator import MultiViewCollator
    from ssl_views.data.dataset import MultiViewDataset, MultiViewIterableDataset
    from ssl_views.data.image_limits import BadImage, ImageLimits
    from ssl_views.data.image_roots import allow_images_below
    from ssl_views.data.loader import MultiViewLoader
    from ssl_views.data.sources import load_images
    from ssl_views.encoders import from_encoder, load_encoder
    from ssl_views.evaluation.feature_cache import FeatureCache
    from ssl_views.evaluation.feature_sets import LabelledFeatures, labelled_features
    from ssl_views.evaluation.features import Extraction, FeatureProtocol, extract_features
    from ssl_views.evaluation.few_labels import few_label_accuracies
    from ssl_views.evaluation.knn import knn_accuracy
    from ssl_views.evaluation.linear_probe import fit_linear_probe, linear_probe_accuracy
    from ssl_views.evaluation.report import evaluate_features
    from ssl_views.export import export_encoder
    from ssl_views.hub import publish_encoder
    from ssl_views.trainer import SSLViewsTrainer
    from ssl_views.training_args import SSLViewsTrainingArguments

__version__ = "0.1.0"

_LAZY = {
    "BadImage": "data.image_limits",
    "BadImages": "data.bad_images",
    "CardDetails": "card_facts",
    "EpochCallback": "callbacks",
    "Extraction": "evaluation.features",
    "FeatureCache": "evaluation.feature_cache",
    "FeatureProtocol": "evaluation.features",
    "ImageLimits": "data.image_limits",
    "LabelledFeatures": "evaluation.feature_sets",
    "MultiViewCollator": "data.collator",
    "MultiViewDataset": "data.dataset",
    "MultiViewIterableDataset": "data.dataset",
    "MultiViewLoader": "data.loader",
    "PixelCache": "data.cache",
    "SSLViewsTrainer": "trainer",
    "SSLViewsTrainingArguments": "training_args",
    "allow_images_below": "data.image_roots",
    "evaluate_features": "evaluation.report",
    "export_encoder": "export",
    "extract_features": "evaluation.features",
    "few_label_accuracies": "evaluation.few_labels",
    "from_encoder": "encoders",
    "fit_linear_probe": "evaluation.linear_probe",
    "knn_accuracy": "evaluation.knn",
    "labelled_features": "evaluation.feature_sets",
    "linear_probe_accuracy": "evaluation.linear_probe",
    "load_encoder": "encoders",
    "load_images": "data.sources",
    "publish_encoder": "hub",
}

__all__ = [
    "BadImage",
    "BadImages",
    "BarlowTwinsLoss",
    "CardDetails",
    "EpochCallback",
    "Extraction",
    "FeatureCache",
    "FeatureProtocol",
    "ImageLimits",
    "KernelLoss",
    "LabelledFeatures",
    "LossTerms",
    "MultiViewCollator",
    "MultiViewDataset",
    "MultiViewIterableDataset",
    "MultiViewLoader",
    "PixelCache",
    "Projector",
    "SSLViewsConfig",
    "SSLViewsForPreTraining",
    "SSLViewsModel",
    "SSLViewsOutput",
    "SSLViewsTrainer",
    "SSLViewsTrainingArguments",
    "TimmEncoderBackbone",
    "VICRegLoss",
    "ViewRecipe",
    "ViewRecords",
    "allow_images_below",
    "barlow_twins_loss",
    "effective_rank",
    "eigenspectrum",
    "evaluate_features",
    "export_encoder",
    "extract_features",
    "few_label_accuracies",
    "fit_linear_probe",
    "fit_power_law",
    "from_encoder",
    "invariance_per_dimension",
    "kernel_loss",
    "knn_accuracy",
    "labelled_features",
    "lidar",
    "linear_probe_accuracy",
    "load_encoder",
    "load_images",
    "publish_encoder",
    "vicreg_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"ssl_views.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'ssl_views' has no attribute {name!r}")
