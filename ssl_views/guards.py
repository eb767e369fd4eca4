"""Guards of a run: numbers that are not finite, and embeddings that collapse."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssl_views.finite import is_usable, limits_of
from ssl_views.spectrum import centred_effective_rank

_ROWS = 256
_LEAST_SPREAD = 1e-3
_LEAST_RANK = 0.05
_LEAST_GRADIENT = 1e-6
_MOST_NAMED = 16


class NonFiniteError(RuntimeError):
    """A pixel, the loss, a gradient or a weight is NaN or infinite."""


class CollapseError(RuntimeError):
    """The embeddings have collapsed."""


def check_weights(model: nn.Module, step: int) -> None:
    """Refuse to save weights or buffers that are not finite.

    Raises:
        NonFiniteError: with the first name.
    """
    limits = limits_of(model)
    for name, tensor in model.state_dict().items():
        if not is_usable(tensor, is_limit=name in limits):
            raise NonFiniteError(
                f"what is saved must be finite; at step {step}, {name} is not. Nothing was "
                "written: resume from the last checkpoint with a lower learning_rate and "
                "allow_changed_run."
            )


def is_finite(loss: Tensor, model: nn.Module | None) -> bool:
    """Return whether a loss, and the gradients of a model if given, are finite."""
    numbers = [loss.detach().float().reshape(())]
    if model is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        numbers.append(torch.nn.utils.get_total_norm(gradients).float().to(loss.device))
    return bool(torch.stack(numbers).isfinite().all())


def non_finite_message(
    *, step: int, rank: int, loss: Tensor, terms: Mapping[str, Tensor], views: Sequence[Tensor],
    indices: Tensor | None, spoilt: bool,
) -> str:  # fmt: skip
    """Return what is known about a step whose loss or gradient is not finite.

    Args:
        step: that would be taken.
        rank: of this process.
        loss: of the step.
        terms: of the loss.
        views: the batch of this process, (B, V, C, S, S) each.
        indices: (B,) of its images, where known.
        spoilt: whether running statistics of the model are not finite.
    """
    bad = torch.zeros(len(views[0]), dtype=torch.bool)
    for x in views:
        bad |= ~torch.isfinite(x).flatten(1).all(1).cpu()
    pixels = bool(bad.any())
    if indices is None:
        numbers, kind = [int(i) for i in bad.nonzero()[:, 0]] or list(range(len(bad))), "places"
    else:
        chosen = indices.cpu()[bad] if pixels else indices.cpu()
        numbers, kind = [int(i) % 2**64 for i in chosen.tolist()], "indices"
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    listed = ", ".join(map(str, numbers[:_MOST_NAMED])) + more
    values = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
    if pixels:
        where = f"its pixels are not finite in the images with {kind} {listed}"
        advice = "Repair them, or the function that made their pixels."
    else:
        where = f"its pixels are finite; the images have {kind} {listed}"
        advice = "Lower learning_rate, lengthen warmup_steps, or train without bf16/fp16."
    if spoilt:
        advice += " (Running statistics are spoilt, so that the step cannot be left out.)"
    return (
        f"loss and gradients must be finite; at step {step} the loss is {float(loss):.4g} "
        f"({values}). Process {rank}: {where}. No step was taken; the last checkpoint is intact. "
        f"{advice}"
    )


def embedding_statistics(embeddings: Tensor) -> Tensor:
    """Return standard deviation, spread and effective rank of embeddings.

    Args:
        embeddings: (B, D), of one view; at most 256 rows are looked at.

    Returns:
        (3,) float64, on the CPU: the root of the mean variance of a dimension; that divided by the
        root mean square, 0 for a constant and 1 for centred embeddings; and RankMe of the centred
        embeddings.
    """
    z = embeddings[:_ROWS].float().cpu().double()  # some devices have no float64
    centred = z - z.mean(0)
    std = centred.square().mean().sqrt()
    size = z.square().mean().sqrt()
    spread = std / size.clamp_min(torch.finfo(torch.float64).tiny)
    rank = torch.tensor(centred_effective_rank(z), dtype=torch.float64)
    return torch.stack([std, spread, rank])


class CollapseWatch:
    """Notices embeddings that stay collapsed for several logs.

    Collapsed is: a spread (see `embedding_statistics`) below 1e-3, an effective rank below 5 % of
    what is possible, or a gradient norm below 1e-6.

    Args:
        shape: (B, D) of the embeddings.
        patience: logs in a row.
    """

    def __init__(self, shape: Sequence[int], patience: int = 5) -> None:
        num_rows, dim = shape
        self.most_rank = max(1, min(num_rows - 1, dim, _ROWS - 1))
        self.patience = patience
        self._logs = 0

    def look(self, spread: float, rank: float, gradient_norm: float | None) -> str | None:
        """Return a sentence when the collapse has lasted, once; else None."""
        signs = []
        if spread < _LEAST_SPREAD:
            signs.append(f"they are constant (relative standard deviation {spread:.1e})")
        if rank < max(_LEAST_RANK * self.most_rank, 1.01):
            signs.append(f"their effective rank is {rank:.1f} of {self.most_rank}")
        if gradient_norm is not None and gradient_norm < _LEAST_GRADIENT:
            signs.append(f"the gradient has vanished (norm {gradient_norm:.1e})")
        self._logs = self._logs + 1 if signs else 0
        if self._logs != self.patience:
            return None
        return (
            f"the embeddings have collapsed for {self.patience} logs: {'; '.join(signs)}. Check "
            "with ssl-views preview that images differ and their views too, lower learning_rate, "
            "or raise orthogonality_weight."
        )
