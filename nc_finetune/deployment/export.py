"""Fine-tuned models for other programs: timm's or open_clip's own weights, a ``torch.export`` program, ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nc_finetune._common.atomic_files import write_atomically
from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.doubt.state import DEFAULT_COVERAGE, NO_SETS, NO_STATISTICS
from nc_finetune.errors import missing_extra
from nc_finetune.files.delta import number_type
from nc_finetune.heads import DiscriminantHead, ZeroShotHead

TOLERANCE = 1e-4  # of the largest logit, where that is above 1
# Another batch size than the one that was traced, so that a batch size baked in is seen.
TRACED_BATCH, CHECKED_BATCH = 2, 3


OUTPUTS = ("logits", "probabilities", "unlike", "strangeness", "in_set")


class _Classify(nn.Module):
    """Images in, logits out, and on request what is said of them; what is a trainer's of a model cannot be traced."""

    def __init__(self, model: ImageClassifier, coverage: float | None = None) -> None:
        super().__init__()
        self.backbone, self.method, self.head = model.backbone, model.method, model.head
        self.doubt = None if coverage is None else model.doubt
        self.coverage = coverage or DEFAULT_COVERAGE
        if self.doubt is not None:  # a constant: programs cannot look a quantile up
            self.register_buffer("limit", self.doubt.limit(self.coverage), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = self.method.features(self.backbone, images)
        logits: Tensor = self.head(features)
        if self.doubt is None:
            return logits
        found = self.doubt.say(features, logits, self.get_buffer("limit"))
        return logits, found.probabilities, found.unlike, found.strangeness, found.in_set


def export_state_dict(model: ImageClassifier, path: str | os.PathLike[str]) -> None:
    """Save the weights of a plain model of timm or open_clip, under the library's own names.

    *timm*: backbone and classifier in one file, which ``timm.create_model(name, num_classes=K, checkpoint_path=path)``
    loads. *open_clip*: the visual tower, which ``open_clip.create_model(name).visual.load_state_dict(...)`` takes;
    open_clip has no place for a classifier, so its ``weight``, and ``bias`` if it has one, stand beside it in
    ``<name>.head.safetensors``. Logits are inner products of them with the tower's output, of length 1 for a zero-shot
    head, or, with the feature before the projection, with what the tower gives once its projection is taken off.

    Images have to be normalised there: neither does so itself.

    Args:
        model: The model.
        path: Where to, ending in ``.safetensors``.

    Raises:
        ValueError: If no plain model computes the same: the method adds something to the forward pass (SCL-FT's skip)
            or to the network (LoRA), or the head is none that the library knows.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a state dict is a .safetensors file, got {path.name!r}")
    method, backbone, head = model.method, model.backbone, model.head
    head = head.as_linear() if isinstance(head, DiscriminantHead) else head
    instead = "export a program or ONNX instead"
    if method.changes_features:
        raise ValueError(
            f"{method.label} adds to the features between backbone and classifier, which a plain model does not;"
            f" {instead}"
        )
    if isinstance(backbone, TimmBackbone):
        if type(head) is not nn.Linear:
            raise ValueError(f"timm's classifier is a linear layer, the head is a {type(head).__name__}; {instead}")
        _write_tensors(path, backbone.state_dict_with_classifier(head))
        return
    if not isinstance(backbone, OpenClipBackbone) or type(head) not in (nn.Linear, ZeroShotHead):
        raise ValueError(
            f"plain are models of timm with a linear head, and of open_clip with a linear or a zero-shot one, got"
            f" {backbone.name!r} with a {type(head).__name__}; {instead}"
        )
    _write_tensors(path, backbone.tower_state_dict())
    _write_tensors(path.with_suffix(".head.safetensors"), head.state_dict())


def _write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_atomically(path, save(tensors, {"format": "pt"}))


def export_program(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    uint8: bool = False,
    doubt: bool = False,
    coverage: float | None = None,
) -> None:
    """Save the whole model, from images to logits, as a program of ``torch.export``.

    ``torch.export.load(path).module()(images)`` runs it; with doubts it returns a tuple, the logits first. Its input
    has shape ``(N, C, image_size, image_size)`` with any N, and is normalised inside. The saved program is run on
    random images before the file is written.

    Args:
        model: The model, by any method; it is put into eval mode.
        path: Where to, ending in ``.pt2``.
        image_size: Height and width in pixels; ``None`` is what the weights were trained on.
        uint8: Images are uint8 in 0...255; otherwise float32 in 0...1.
        doubt: Give what the model knows of its doubts, too: probabilities at its temperature ``(N, K)``, the share of
            the training images that lie further out ``(N,)`` (below 0.05: a stranger), strangeness ``(N,)``, which
            orders those beyond all of them, and which classes are in the set, bool ``(N, K)``.
        coverage: How often the set holds the right class; ``None`` is 0.9.

    Raises:
        ValueError: If the path ends otherwise, the model has no statistics of its training images and is asked for its
            doubts, or a coverage is out of range or given without them.
        RuntimeError: If the logits differ from the model's by more than 1e-4, or that share of the largest.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"a program is a .pt2 file, got {path.name!r}")
    told = _told(model, doubt, coverage)
    file = io.BytesIO()
    torch.export.save(_trace(model, image_size, uint8, told), file)
    file.seek(0)
    saved = torch.export.load(file).module()
    images = _images(model, CHECKED_BATCH, image_size, uint8)
    with torch.no_grad():
        found, expected = saved(images), _Classify(model, told)(images)
    _check_all(found, expected)
    write_atomically(path, file.getvalue())


def export_onnx(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    uint8: bool = False,
    doubt: bool = False,
    coverage: float | None = None,
) -> None:
    """Save the whole model, from images to logits, as ONNX, and compare its logits in onnxruntime with the model's.

    The input is called ``images``, shape ``(N, C, image_size, image_size)`` with any N, and is normalised inside; the
    output is called ``logits``, shape ``(N, K)``; with doubts further ones are called ``probabilities``, ``unlike``,
    ``strangeness`` and ``in_set``. Numbers are float32, of a model in another precision, too:
    onnxruntime has no convolutions in bfloat16 or float64 on a CPU.

    Args:
        model: The model, by any method; it is put into eval mode.
        path: Where to, ending in ``.onnx``; below 2 GiB, which is as large as one ONNX file can be.
        image_size: Height and width in pixels; ``None`` is what the weights were trained on.
        uint8: Images are uint8 in 0...255; otherwise float32 in 0...1.
        doubt: Give what the model knows of its doubts, too: probabilities at its temperature ``(N, K)``, the share of
            the training images that lie further out ``(N,)`` (below 0.05: a stranger), strangeness ``(N,)``, which
            orders those beyond all of them, and which classes are in the set, bool ``(N, K)``.
        coverage: How often the set holds the right class; ``None`` is 0.9.

    Raises:
        ValueError: If the path ends otherwise, the model has no statistics of its training images and is asked for its
            doubts, or a coverage is out of range or given without them.
        ImportError: If the extra ``export`` is not installed.
        RuntimeError: If the logits differ from the model's by more than 1e-4, or that share of the largest.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX model is a .onnx file, got {path.name!r}")
    told = _told(model, doubt, coverage)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it, and says so less clearly)
    except ImportError as error:
        raise missing_extra(error.name or "onnxruntime", "export", "exporting to ONNX") from error
    if number_type(model) is not torch.float32:
        model = copy.deepcopy(model).float()
    names = OUTPUTS if told is not None else OUTPUTS[:1]
    content = _onnx_bytes(_trace(model, image_size, uint8, told), names)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = _images(model, CHECKED_BATCH, image_size, uint8)
    with torch.no_grad():
        expected = _Classify(model, told)(images)
    found = [torch.from_numpy(one) for one in session.run([*names], {"images": images.numpy()})]
    _check_all(found if told is not None else found[0], expected)
    write_atomically(path, content)


def _images(model: ImageClassifier, number: int, image_size: int | None, uint8: bool) -> Tensor:
    size = image_size or model.backbone.preprocessing.image_size
    shape = (number, len(model.backbone.preprocessing.mean), size, size)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    return images.to(torch.uint8) if uint8 else images / 255


def _told(model: ImageClassifier, doubt: bool, coverage: float | None) -> float | None:
    """Return the coverage of the sets that a program gives; ``None`` where it gives logits alone."""
    if not doubt:
        if coverage is not None:
            raise ValueError(
                "a coverage is of the sets that a program gives with its doubts; ask for these, or leave it"
            )
        return None
    if model.doubt is None:
        raise ValueError(NO_STATISTICS)
    if coverage is not None and not model.doubt.has_scores:
        raise ValueError(NO_SETS)
    if not model.doubt.has_distances:
        raise ValueError(
            "the statistics of the training images have no distances, since no class has two images; leave doubts out"
        )
    model.doubt.limit(coverage or DEFAULT_COVERAGE)  # looks whether it is in range
    return coverage or DEFAULT_COVERAGE


def _trace(
    model: ImageClassifier, image_size: int | None, uint8: bool, coverage: float | None
) -> torch.export.ExportedProgram:
    # The skip of SCL-FT is taken by a forward hook; torch.export runs hooks, and records what they do.
    images = _images(model, TRACED_BATCH, image_size, uint8)
    with torch.no_grad(), _quiet():
        shapes = {"images": {0: torch.export.Dim("batch")}}
        return torch.export.export(_Classify(model.cpu(), coverage), (images,), dynamic_shapes=shapes)


def _onnx_bytes(program: torch.export.ExportedProgram, names: Sequence[str]) -> bytes:
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=[*names],
        )
    if converted is None:
        raise RuntimeError("torch could not convert the program to ONNX")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        converted.save(str(file), external_data=False)
        return file.read_bytes()


def _check_all(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Compare the logits, and what is said of them but for the set, whose edge rounding may move."""
    pairs = [(found,), (expected,)] if isinstance(expected, Tensor) else [found, expected]
    for name, one, other in zip(OUTPUTS[:-1], *pairs, strict=False):
        _check(one, other, name)


def _check(found: Tensor, expected: Tensor, name: str = OUTPUTS[0]) -> None:
    worst, largest = float((found - expected).abs().max()), float(expected.abs().max())
    allowed = TOLERANCE * max(1.0, largest)  # float32 rounds large logits by as much more
    if not worst <= allowed:
        raise RuntimeError(f"the exported {name} differ from the model's by {worst:.3g}, more than {allowed:.3g}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's warnings about its own insides from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
