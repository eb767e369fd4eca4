"""Batch statistics of embeddings, over every process of a run.

This is the only file that talks to `torch.distributed`.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# On a CPU, rows times dimensions of a part: it stays in the cache, and its temporaries on the heap.
_PART_ELEMENTS = 2**17


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; so is the gradient, because every process's loss depends on the sum."""

    @staticmethod
    def forward(ctx: "_SumOverProcesses", local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: "_SumOverProcesses", grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def sum_over_processes(local: Tensor) -> Tensor:
    """Sum a tensor of the same shape on every process, differentiably."""
    return local if world_size() == 1 else _SumOverProcesses.apply(local)


def rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(local: Tensor) -> Tensor:
    """Return the rows of all processes one after the other, without gradient.

    Args:
        local: (n, ...), on the device that processes talk by; n may differ from process to process.
    """
    processes = world_size()
    if processes == 1:
        return local
    sizes = local.new_zeros(processes, dtype=torch.int64)
    sizes[dist.get_rank()] = len(local)
    dist.all_reduce(sizes)
    largest = int(sizes.max())
    padded = local.new_zeros(largest, *local.shape[1:])
    padded[: len(local)] = local
    sent = padded.flatten().view(torch.uint8)  # not every backend knows every type
    gathered = sent.new_empty(processes * len(sent))
    dist.all_gather_into_tensor(gathered, sent)
    parts = gathered.view(local.dtype).view(processes, largest, *local.shape[1:])
    return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])


@dataclass(frozen=True)
class GlobalBatch:
    """Embeddings with what has to be known of those of the other processes.

    Attributes:
        rows: (V, n, D), float32 or float64: all images of the global batch if `complete`, else this
            process's.
        num_images: N, of the global batch.
        own: where this process's images lie in `rows`.
        num_processes: that share the loss.
        wanted: whether some process will ask for the gradient.
        known: the means (V, D) of the global batch in float64, where the rows are not complete.
    """

    rows: Tensor
    num_images: int
    own: slice
    num_processes: int
    wanted: bool
    known: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether `rows` holds the global batch."""
        return self.known is None

    def shifted(self, part: slice) -> Tensor:
        """Return the rows of some dimensions, (V, n, part), less one mean of all: a new tensor.

        No loss sees a shift common to all views. Taken away first, it takes the rounding of large
        means with it.
        """
        rows = self.rows[..., part]
        means = rows.mean(dim=1) if self.known is None else self.known[:, part]
        return rows - means.mean(dim=0).to(rows.dtype)

    def center_(self, shifted: Tensor, part: slice, pooled: bool = False) -> Tensor:
        """Subtract the mean over the global batch from shifted rows, in place.

        Of every view for itself, or, if `pooled`, of all views together.
        """
        if self.known is None:
            means = shifted.mean(dim=1, keepdim=True)
        else:
            means = self.known[:, part]
            means = (means - means.mean(dim=0).to(shifted.dtype)).to(shifted.dtype)[:, None]
        return shifted.sub_(means.mean(dim=0) if pooled else means)

    def sum(self, *local: Tensor) -> list[Tensor]:
        """Sum tensors computed from `rows` over processes, in one collective."""
        if self.complete:
            return list(local)
        buffer = torch.cat([tensor.flatten() for tensor in local])
        dist.all_reduce(buffer)
        parts = buffer.split([tensor.numel() for tensor in local])
        return [part.view_as(tensor) for part, tensor in zip(parts, local, strict=True)]

    def sum_symmetric(self, matrices: Tensor, *local: Tensor) -> list[Tensor]:
        """Like `sum`, but of the first, symmetric (G, D, D), only upper triangles travel."""
        if self.complete:
            return [matrices, *local]
        dim = matrices.shape[-1]
        row, column = torch.triu_indices(dim, dim, device=matrices.device)
        upper, *others = self.sum(matrices[:, row, column], *local)
        matrices[:, row, column] = upper
        matrices[:, column, row] = upper
        return [matrices, *others]

    def parts(self, whole: bool = False, least: int = 64) -> list[slice]:
        """Cut the dimensions so that the rows of a part stay in the cache of a CPU.

        One part if `whole`, on other devices, and where a part would need a collective of its own.
        Matrix products want at least 256 dimensions or so, elementwise work does with fewer.
        """
        num_rows, dim = self.rows.shape[0] * self.rows.shape[1], self.rows.shape[2]
        if whole or self.rows.device.type != "cpu" or not self.complete:
            return [slice(0, dim)]
        step = max(least, _PART_ELEMENTS // max(num_rows, 1))
        return [slice(start, min(start + step, dim)) for start in range(0, dim, step)]

    def own_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of this process's embeddings, for a mean of gradients over processes.

        Every process computes the same loss, so the mean over processes of the parameter gradients
        is the gradient of the whole batch if each contributes num_processes times its share.
        """
        if self.num_processes == 1:
            return gradient
        return gradient[:, self.own] * self.num_processes


@torch.no_grad()
def global_batch(embeddings: Tensor, moment_elements: int, wanted: bool) -> GlobalBatch:
    """Share what the processes of a run must know of each other's embeddings.

    One small collective gives the number of images and the means. Then, whichever moves less:
    either each process gets the embeddings of all, or it keeps its own and the losses sum second
    moments over processes. The backward pass communicates nothing in either case.

    Args:
        embeddings: (V, B, D), this process's; B may differ from process to process, and be 0.
            float16 and bfloat16 become float32.
        moment_elements: numbers that summing second moments would move.
        wanted: whether this process will ask for the gradient.
    """
    rows = embeddings.detach()
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    num_views, local_images, dim = rows.shape
    every, processes = slice(0, local_images), world_size()
    if processes == 1:
        return GlobalBatch(rows, local_images, every, 1, wanted)
    rank = dist.get_rank()
    counts = torch.zeros(processes + 1, dtype=torch.float64, device=rows.device)
    counts[rank], counts[-1] = local_images, wanted
    buffer = torch.cat([counts, rows.sum(dim=1, dtype=torch.float64).flatten()])
    dist.all_reduce(buffer)
    *sizes, some_want = (int(count) for count in buffer[: processes + 1].tolist())
    num_images, largest = sum(sizes), max(sizes)
    # A ring moves 2 (P - 1) / P of what is summed, and (P - 1) / P of what is gathered.
    if processes * largest * num_views * dim >= 2 * moment_elements:
        means = buffer[processes + 1 :].view(num_views, dim) / max(num_images, 1)
        return GlobalBatch(rows, num_images, every, processes, some_want > 0, known=means)
    padded = rows.new_zeros(num_views, largest, dim)
    padded[:, :local_images] = rows
    gathered = rows.new_empty(processes * num_views, largest, dim)
    dist.all_gather_into_tensor(gathered, padded)
    padded_parts = zip(gathered.split(num_views), sizes, strict=True)
    rows = torch.cat([part[:, :size] for part, size in padded_parts], dim=1)
    start = sum(sizes[:rank])
    own = slice(start, start + local_images)
    return GlobalBatch(rows, num_images, own, processes, wanted)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: "_KnownGradient", embeddings: Tensor, value: Tensor, gradient: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gradient, embeddings.new_empty(0))
        return value.clone()

    @staticmethod
    def backward(ctx: "_KnownGradient", grad: Tensor) -> tuple[Tensor, None, None]:
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            raise RuntimeError(
                "the losses must be differentiated once; got create_graph=True. Their gradient is "
                "known in closed form and has no graph: leave create_graph off."
            )
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        gradient, like = saved
        if compiling or grad.device.type != "cpu" or grad.item() != 1:  # else it is right as it is
            gradient = gradient * grad
        return gradient.to(like.dtype), None, None


def with_gradient(embeddings: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a value whose gradient by the embeddings is known; it cannot be differentiated twice.

    Args:
        embeddings: what the value was computed from.
        value: 0-d.
        gradient: of the embeddings' shape, float32 or float64; None if nobody will ask.
    """
    return value if gradient is None else _KnownGradient.apply(embeddings, value, gradient)
