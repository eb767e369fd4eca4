"""An encoder as one ONNX file, checked against torch."""

import copy
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_views.naming import printable

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_INPUT, _OUTPUT = "pixel_values", "features"


def check_onnx_installed() -> None:
    """Refuse to go on without the packages that write and run ONNX files.

    Raises:
        ValueError: if one is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"an ONNX file needs the packages {', '.join(_NEEDED)}; {', '.join(missing)} cannot be "
            'found. Install them: pip install "ssl-views[onnx]".'
        )


def write_onnx(backbone: nn.Module, path: str | Path, input_size: tuple[int, int, int]) -> None:
    """Write a backbone as an ONNX file, and run it at two batch sizes to compare it with torch.

    Its input "pixel_values" is (N, C, H, W), normalized, for any N; its output "features" is what
    the backbone gives. The backbone is not changed.

    Args:
        backbone: a timm model.
        path: of the file, which holds the weights too.
        input_size: (C, H, W).

    Raises:
        ValueError: if a package is missing, torch cannot write this architecture as ONNX, or the
            file does not give the features of torch.
    """
    check_onnx_installed()
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    model = copy.deepcopy(backbone).to("cpu", torch.float32).eval()
    for module in model.modules():
        if "fused_attn" in vars(module):  # timm's switch; some of its calls cannot be traced
            setattr(module, "fused_attn", False)  # noqa: B010 (not a field of Module)
    reasons = []
    # Tracing takes a tenth of the time, and gives any batch size with torch 2.6 too. Some
    # operators only the newer way knows.
    for write in (_traced, _exported):
        try:
            content = write(model, _images(2, input_size))
            _compare(content, model, input_size)
        except (
            AssertionError, RuntimeError, TypeError, ValueError, runtime.Fail,
            runtime.InvalidArgument, runtime.InvalidGraph, runtime.NotImplemented,
            runtime.RuntimeException,
        ) as error:  # fmt: skip
            reasons.append(printable(" ".join(str(error).split())[:200]))
        else:
            Path(path).write_bytes(content)
            return
    raise ValueError(
        f"torch must be able to write {type(model).__name__} as one ONNX file; it failed in both "
        f"ways: {'; '.join(reasons)}. Export without onnx."
    )


def _traced(model: nn.Module, images: Tensor) -> bytes:
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it warns of every Python number, and of the newer way
        torch.onnx.export(
            model,
            (images,),
            buffer,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
            dynamo=False,
        )
    return bytes(buffer.getvalue())


def _exported(model: nn.Module, images: Tensor) -> bytes:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model,
            (images,),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    return bytes(program.model_proto.SerializeToString())


def _compare(content: bytes, model: nn.Module, input_size: tuple[int, int, int]) -> None:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = _images(count, input_size)
        with torch.no_grad():
            expected = model(images)
        features = torch.from_numpy(session.run([_OUTPUT], {_INPUT: images.numpy()})[0])
        if features.shape != expected.shape or not torch.allclose(
            features, expected, atol=1e-4, rtol=1e-3
        ):
            raise ValueError(f"for {count} images the file gives other features than torch")


def _images(count: int, input_size: tuple[int, int, int]) -> Tensor:
    """Draw images; the random numbers of the process are left alone."""
    return torch.randn(count, *input_size, generator=torch.Generator().manual_seed(count))
