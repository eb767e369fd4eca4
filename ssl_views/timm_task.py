"""The multi-view objective as a task of timm's own training loop (timm 1.0.27 saves its state)."""

from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ssl_views.batchnorm import synchronize_batchnorm
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining


class MultiViewTask(TrainingTask):
    """Trains a model in timm's loop; a checkpoint's 'state_dict' is the bare timm backbone.

    Args:
        model: neither compiled nor wrapped; the task has its device and dtype.

    Source:
        https://github.com/huggingface/pytorch-image-models timm/task/task.py.

    Differs from source:
        Has no evaluator, synchronizes BatchNorm, refuses a checkpoint without the projector.

    Example:
        >>> config = SSLViewsConfig(backbone="test_resnet", image_size=32, projector_dim=16)
        >>> task = MultiViewTask(SSLViewsForPreTraining(config))
        >>> sorted(task(torch.randn(8, 4, 3, 32, 32)))
        ['invariance', 'loss', 'output', 'redundancy']
    """

    def __init__(self, model: SSLViewsForPreTraining) -> None:
        if not isinstance(model, SSLViewsForPreTraining):
            raise TypeError(
                f"model must be SSLViewsForPreTraining; got {type(model).__name__}. Build one from "
                "SSLViewsConfig(backbone=...); the task itself compiles and distributes it."
            )
        super().__init__(device=model.device, dtype=model.dtype)
        self.trainable_module: Any = model

    def forward(self, input: Tensor, target: Any = None) -> dict[str, Tensor]:
        """Compute the loss of normalized views (B, V, C, S, S), as from `MultiViewCollator`.

        timm's loop passes each task the labels of its loader, `target`; no term of ours reads them.

        Returns:
            'loss', 0-d; its terms by name, detached; 'output' (B, V, D_h), the representations of
            the views, detached: what `get_eval_model` gives and kNN or a probe can judge.
        """
        out = self.trainable_module(input)
        return {**out.terms, "loss": out.loss, "output": out.representations.detach().movedim(0, 1)}

    def prepare_distributed(self, device_ids: Any = None, **kwargs: Any) -> "MultiViewTask":
        """Give BatchNorm the statistics of all processes; wrap in DistributedDataParallel."""
        synchronize_batchnorm(self._model(), self._model().device.type)
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids, **kwargs)
        return self

    def compile(self, backend: str = "inductor", **kwargs: Any) -> Any:
        """Compile the trainable and the eval model, before DDP; return the latter."""
        self.eval_model = torch.compile(self.get_eval_model(), backend=backend, **kwargs)
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, **kwargs)
        return self.eval_model

    def _model(self, module: Any = None, ema: bool = False) -> Any:
        return unwrap_model(module or getattr(self, "trainable_module" + "_ema" * ema, None))

    def get_eval_model(self, module: Any = None, ema: bool = False) -> Any:
        """Return the timm backbone, (B, C, S, S) to (B, D_h); None for an EMA that is not there."""
        model = self._model(module, ema)
        backbone = model.ssl_views.backbone if model else None
        return backbone if module else getattr(self, "eval_model" + "_ema" * ema, backbone)

    def get_task_state(self, module: Any = None, ema: bool = False) -> dict[str, Any]:
        """Return what a resumed run needs beside the backbone: the projector."""
        model = self._model(module, ema)
        return {"projector": model.projector.state_dict()} if model else {}

    def load_task_state(self, state: Any, strict: bool = True, **which: Any) -> None:
        """Load what `get_task_state` returned, into the model that `module` or `ema` names."""
        model, projector = self._model(**which), (state or {}).get("projector")
        if model is None:
            raise RuntimeError("the task must have an EMA to load; it has none. Call setup_ema().")
        if projector:
            model.projector.load_state_dict(projector, strict=strict)
        elif strict:
            raise ValueError(
                f"task_state must hold the projector; got {sorted(state or {})}. To start anew "
                "from an encoder, load that into get_eval_model()."
            )

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Refuse, since timm's evaluators compare class logits with labels."""
        raise NotImplementedError(
            "an evaluator must get class logits; MultiViewTask has none. Rank checkpoints by the "
            "loss, or judge get_eval_model() with ssl_views.knn_accuracy."
        )
