"""Module forms of the losses, and building one by its name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ssl_views.losses import (
    LossTerms,
    Redundancy,
    Weight,
    barlow_form,
    barlow_twins_loss,
    kernel_loss,
    resolve_orthogonality_weight,
    vicreg_loss,
    vicreg_weights,
)
from ssl_views.naming import did_you_mean


class BarlowTwinsLoss(nn.Module):
    """Module form of `barlow_twins_loss`; the arguments are its keyword arguments."""

    def __init__(
        self,
        orthogonality_weight: Weight = "auto",
        *,
        all_pairs: bool = False,
        redundancy: Redundancy = "views",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        barlow_form(all_pairs, redundancy, num_views=2)
        self.orthogonality_weight = orthogonality_weight
        self.all_pairs = all_pairs
        self.redundancy = redundancy
        self.eps = eps

    def forward(self, embeddings: Tensor) -> LossTerms:
        """Compute the loss of (V, B, D) embeddings."""
        return barlow_twins_loss(
            embeddings,
            self.orthogonality_weight,
            all_pairs=self.all_pairs,
            redundancy=self.redundancy,
            eps=self.eps,
        )


class VICRegLoss(nn.Module):
    """Module form of `vicreg_loss`; the arguments are its keyword arguments."""

    def __init__(
        self,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        vicreg_weights(invariance_weight, variance_weight, covariance_weight)
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight
        self.eps = eps

    def forward(self, embeddings: Tensor) -> LossTerms:
        """Compute the loss of (V, B, D) embeddings."""
        return vicreg_loss(
            embeddings,
            invariance_weight=self.invariance_weight,
            variance_weight=self.variance_weight,
            covariance_weight=self.covariance_weight,
            eps=self.eps,
        )


class KernelLoss(nn.Module):
    """Module form of `kernel_loss`; the arguments are its keyword arguments."""

    def __init__(self, orthogonality_weight: Weight = "auto") -> None:
        super().__init__()
        self.orthogonality_weight = orthogonality_weight

    def forward(self, embeddings: Tensor) -> LossTerms:
        """Compute the loss of (V, B, D) embeddings."""
        return kernel_loss(embeddings, self.orthogonality_weight)


LOSSES: Mapping[str, type[nn.Module]] = {
    "barlow_twins": BarlowTwinsLoss,
    "vicreg": VICRegLoss,
    "kernel": KernelLoss,
}


def build_loss(
    name: str,
    projector_dim: int,
    orthogonality_weight: Weight = "auto",
    loss_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a loss module from its name, one orthogonality weight and the loss's own arguments.

    For VICReg a number b sets the invariance and variance weights to 1/(projector_dim * b) and the
    covariance weight to 1 (arXiv 2312.10725, Fig. 8); "auto" is b = 1/(25 D), the published 25, 25,
    1.

    Raises:
        ValueError: on an unknown name (the nearest one is proposed) or unknown or conflicting
            arguments.
    """
    if name not in LOSSES:
        raise ValueError(
            f"loss must be one of {sorted(LOSSES)}; got {name!r}.{did_you_mean(name, LOSSES)}"
        )
    loss_args = dict(loss_args or {})
    if "orthogonality_weight" in loss_args:
        raise ValueError("loss_args must not hold 'orthogonality_weight'. Set the field itself.")
    weight = resolve_orthogonality_weight(orthogonality_weight, projector_dim, name)
    if name != "vicreg":
        loss_args = {"orthogonality_weight": orthogonality_weight, **loss_args}
    elif weight == 0:
        raise ValueError(
            "the orthogonality weight of VICReg must be above 0; got 0. "
            "Set covariance_weight to 0 instead."
        )
    else:
        own = {"invariance_weight", "variance_weight", "covariance_weight"}
        if orthogonality_weight != "auto" and loss_args.keys() & own:
            raise ValueError(
                "VICReg takes either orthogonality_weight or its own three weights; got both. "
                "Leave orthogonality_weight at 'auto' to set the three."
            )
        strength = 1 / (projector_dim * weight)
        loss_args = {"invariance_weight": strength, "variance_weight": strength, **loss_args}
    try:
        return LOSSES[name](**loss_args)
    except TypeError as error:
        raise ValueError(
            f"loss_args do not fit {name!r}: {error}. See help(ssl_views.{LOSSES[name].__name__})."
        ) from error
