"""Multi-view non-contrastive losses over embeddings (V, B, D).

They are continuous in the number of views V (but for Barlow Twins with redundancy="mean"): V = 2 is
the published two-view loss, and the same weight means the same strength for every V.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_views.correlation_forms import Form, barlow_elements, barlow_twins
from ssl_views.covariance_forms import kernel, kernel_elements, vicreg, vicreg_elements
from ssl_views.statistics import GlobalBatch, global_batch, with_gradient

Weight = float | Literal["auto"]
Redundancy = Literal["views", "mean"]

# orthogonality_weight="auto" is constant / D^exponent. Barlow Twins and the kernel form follow the
# sweep of benchmarks/orthogonality_weight.py (docs/losses.md); VICReg keeps the published weights,
# which the authors' long runs support and our short ones do not.
AUTO = {
    "barlow_twins": (10.0, 1.0),
    "vicreg": (1 / 25, 1.0),
    "kernel": (2.2, 0.3),
}


class LossTerms(NamedTuple):
    """What a loss returns.

    Attributes:
        total: 0-d, the weighted sum of the terms; call `backward` on it, once: it has no second
            derivative.
        terms: the unweighted terms by name, each 0-d, without gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]


def resolve_orthogonality_weight(weight: Weight, dim: int, loss: str) -> float:
    """Return the number behind a loss's orthogonality weight: itself, or that of "auto"."""
    constant, exponent = AUTO[loss]
    auto = constant / dim**exponent
    if weight == "auto":
        return auto
    if not _is_weight(weight):
        raise ValueError(
            f"orthogonality_weight must be a number >= 0 or 'auto'; got {weight!r}. "
            f"'auto' would be {auto:.4g} at D = {dim}."
        )
    return float(weight)


def _is_weight(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < math.inf


def barlow_form(all_pairs: bool, redundancy: Redundancy, num_views: int) -> Form:
    """Return the form that the arguments of `barlow_twins_loss` name."""
    if redundancy not in ("views", "mean") or (all_pairs and redundancy == "mean"):
        raise ValueError(
            "redundancy must be 'views' or 'mean', and 'views' with all_pairs; got "
            f"{redundancy!r}. 'views' is the default."
        )
    if redundancy == "mean":
        return "mean"
    return "pairs" if all_pairs or num_views == 2 else "others"  # at two views the same loss


def vicreg_weights(invariance: float, variance: float, covariance: float) -> dict[str, float]:
    """Return the weights of `vicreg_loss` by term."""
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, weight in weights.items():
        if not _is_weight(weight):
            raise ValueError(
                f"{name}_weight must be a number >= 0; got {weight!r}. The published weights are "
                "25, 25 and 1."
            )
    return weights


def _check(embeddings: Tensor) -> None:
    if embeddings.ndim != 3 or embeddings.shape[0] < 2 or embeddings.shape[2] < 1:
        raise ValueError(
            "embeddings must have shape (V, B, D) with V >= 2; got "
            f"{tuple(embeddings.shape)}. Ask for at least two views, e.g. num_views=2."
        )
    if embeddings.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            "embeddings must be floating point, of 16, 32 or 64 bits; got "
            f"{embeddings.dtype}. Pass the projector's output."
        )


def _evaluate(
    embeddings: Tensor,
    moment_elements: int,
    weights: dict[str, float],
    form: Callable[[GlobalBatch], tuple[dict[str, Tensor], Tensor | None]],
) -> LossTerms:
    """Share the batch over processes, and compute value and gradient of a loss at once."""
    wanted = torch.is_grad_enabled() and embeddings.requires_grad
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        batch = global_batch(embeddings, moment_elements, wanted)
        if batch.num_images < 2:
            raise ValueError(
                f"the batch must hold at least 2 images over all processes; got "
                f"{batch.num_images}. Statistics over one image do not exist: raise the batch size."
            )
        terms, gradient = form(batch)
        total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        gradient = batch.own_gradient(gradient) if wanted and gradient is not None else None
    return LossTerms(with_gradient(embeddings, total, gradient), terms)


def barlow_twins_loss(
    embeddings: Tensor,
    orthogonality_weight: Weight = "auto",
    *,
    all_pairs: bool = False,
    redundancy: Redundancy = "views",
    eps: float = 1e-5,
) -> LossTerms:
    """Compute the multi-view Barlow Twins loss, each view against the mean of the others.

    With u_v the view v standardized per dimension over the batch, w_v the mean of the other views'
    u, and C_v = u_v^T w_v / B: the mean over v of sum_i (1 - C_v,ii)^2 + orthogonality_weight *
    sum_{i != j} C_v,ij^2.

    Args:
        embeddings: (V, B, D), V >= 2, any float dtype; half precision is computed in float32. B is
            this process's batch; the statistics are those of all processes.
        orthogonality_weight: weight of the redundancy term; "auto" is 10 / D.
        all_pairs: average the two-view loss over all pairs of views instead.
        redundancy: "views" penalizes the off-diagonal of C_v, as above. "mean" penalizes that of
            m^T m / B instead, m the mean of all u: one matrix for any number of views, and the
            fastest, but not the published loss at V = 2, for 1/V of it is correlation within views.
        eps: added to the variance, inside the root.

    Returns:
        LossTerms with terms "invariance" (the diagonal) and "redundancy" (the off-diagonal).

    Raises:
        ValueError: on another shape, V < 2, a non-float dtype, a global batch below 2, a negative
            weight.

    Source:
        Barlow Twins, arXiv 2103.03230 eq. 1, code facebookresearch/barlowtwins@8e8d284 main.py; the
        multi-view setting of arXiv 2312.10725.

    Differs from source:
        V = 2 equals the published value (BatchNorm1d without affine: biased variance, eps 1e-5),
        with the weight written as an argument (published 0.0051 at D = 8192, without 'auto'). The
        code of arXiv 2312.10725 uses another formula for V > 2, whose diagonal shrinks with V (its
        off-diagonal is redundancy="mean"), and l2-normalizes rows first; this does neither. The
        published code all-reduces in place, which scales its gradient by 1/processes; this is
        exact.

    Relations:
        `kernel_loss` does not standardize; `vicreg_loss` uses a hinge on the standard deviation
        instead.

    Example:
        >>> z = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(0))
        >>> sorted(barlow_twins_loss(z).terms)
        ['invariance', 'redundancy']
    """
    _check(embeddings)
    num_views, _, dim = embeddings.shape
    weight = resolve_orthogonality_weight(orthogonality_weight, dim, "barlow_twins")
    form = barlow_form(all_pairs, redundancy, num_views)
    return _evaluate(
        embeddings,
        barlow_elements(num_views, dim, form),
        {"invariance": 1.0, "redundancy": weight},
        lambda batch: barlow_twins(batch, weight, form, eps),
    )


def vicreg_loss(
    embeddings: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
) -> LossTerms:
    """Compute the multi-view VICReg loss.

    With m the mean of the views, S_v the unbiased covariance of view v over the batch:
    invariance = 2/(V-1) sum_v mean_{b,i} (z_v - m)^2 (the mean squared difference over pairs of
    views), variance = mean_{v,i} relu(1 - sqrt(S_v,ii + eps)), covariance = 2/V sum_v sum_{i != j}
    S_v,ij^2 / D.

    Args:
        embeddings: (V, B, D), V >= 2, any float dtype; half precision is computed in float32. B is
            this process's batch; the statistics are those of all processes.
        invariance_weight: weight of the invariance term.
        variance_weight: weight of the variance hinge.
        covariance_weight: weight of the covariance term, which is already divided by D.
        eps: added to the variance, inside the root.

    Returns:
        LossTerms with terms "invariance", "variance" and "covariance".

    Raises:
        ValueError: on another shape, V < 2, a non-float dtype, a global batch below 2.

    Source:
        VICReg, arXiv 2105.04906 eqs. 1-6, code facebookresearch/vicreg@4e12602 main_vicreg.py.

    Differs from source:
        V = 2 equals the published code's value, where the hinge is the mean and the covariance term
        the sum over the two views; for V > 2 the covariance term stays at twice the mean, so
        weights keep their strength.

    Relations:
        In the terms of arXiv 2312.10725 (Fig. 8) the orthogonality weight is 1/(D * mu) for
        invariance and variance weights mu and covariance weight 1.

    Example:
        >>> z = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(0))
        >>> sorted(vicreg_loss(z).terms)
        ['covariance', 'invariance', 'variance']
    """
    _check(embeddings)
    num_views, _, dim = embeddings.shape
    weights = vicreg_weights(invariance_weight, variance_weight, covariance_weight)
    return _evaluate(
        embeddings,
        vicreg_elements(num_views, dim),
        weights,
        lambda batch: vicreg(batch, weights, eps),
    )


def kernel_loss(embeddings: Tensor, orthogonality_weight: Weight = "auto") -> LossTerms:
    """Compute the kernel form: invariance to the mean view, and a covariance near the identity.

    With m the mean of the views and Cov the biased covariance over all V * B rows:
    1/(2(V-1)) sum_v mean_b |z_v - m|^2 + orthogonality_weight * |Cov - I|_F^2.

    Args:
        embeddings: (V, B, D), V >= 2, any float dtype; half precision is computed in float32. B is
            this process's batch; the statistics are those of all processes.
        orthogonality_weight: weight of the orthogonality term; "auto" is 2.2 / D^0.3.

    Returns:
        LossTerms with terms "invariance" and "orthogonality".

    Raises:
        ValueError: on another shape, V < 2, a non-float dtype, a global batch below 2, a negative
            weight.

    Source:
        arXiv 2312.10725, section 3: the penalty form of "minimise sum_i |T_M f_i - f_i|^2 subject
        to <f_i, f_j> = delta_ij"; (1/V) sum_v mean_b |z_v - m|^2 + beta |Cov - I|_F^2.

    Differs from source:
        The invariance term is multiplied by V / (2(V-1)), which is 1 at V = 2. Without it, the
        expected term for views that scatter around a common embedding with variance s^2 would grow
        with V from s^2/2 to s^2, and the same weight would mean another strength at each V.

    Relations:
        `barlow_twins_loss` standardizes first, so its diagonal needs no orthogonality weight.

    Example:
        >>> z = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(0))
        >>> sorted(kernel_loss(z).terms)
        ['invariance', 'orthogonality']
    """
    _check(embeddings)
    dim = embeddings.shape[2]
    weight = resolve_orthogonality_weight(orthogonality_weight, dim, "kernel")
    return _evaluate(
        embeddings,
        kernel_elements(dim),
        {"invariance": 1.0, "orthogonality": weight},
        lambda batch: kernel(batch, weight),
    )
