"""Exports a parser, from decoded photos to label maps, as an ONNX graph and a torch.export program, and checks them.

Both take photos (B, H, W, 3), uint8 RGB, B of one size at once, any B, H and W, and give labels (B, H, W), uint8.
With --framed they take one photo (1, H, W, 3) and the frames (F, 2, 3), float32, of its F faces, found by your own
detector, and give labels (F, H, W).
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data.datasets.synthetic import draw_face
from data.images import frame_pixels
from faces.align import turned_square
from models.loading import load_parser
from models.parser import FaceParser
from scoring import options
from utils.cli import Parser
from utils.errors import InputError
from utils.files import write_bytes
from utils.runtime import run_main

AGREEMENT = 0.999  # share of the pixels that must have the parser's own label


class Labeller(nn.Module):
    """photos_BHW3 (uint8) -> labels_BHW (uint8).

    axes: the names of its inputs and of their axes of any length. examples: such inputs, to trace it with.
    """

    axes: ClassVar[dict[str, dict[int, str]]] = {"photos": {0: "batch", 1: "height", 2: "width"}}
    examples: ClassVar[tuple[Tensor, ...]] = (torch.zeros(2, 300, 280, 3, dtype=torch.uint8),)

    def __init__(self, parser: FaceParser) -> None:
        super().__init__()
        self.parser = parser

    def forward(self, photos: Tensor) -> Tensor:
        only_bytes(photos)
        return self.parser(photos).argmax(1).to(torch.uint8)

    def checks(self) -> Iterator[tuple[str, tuple[Tensor, ...], Tensor]]:
        """Drawn faces, in photos larger and smaller than the networks' view: (what they are, inputs, labels)."""
        for count, height, width in ((1, 384, 320), (3, 150, 200)):
            faces = [draw_face(0, index, max(height, width))[0][:height, :width] for index in range(count)]
            photos_BHW3 = torch.from_numpy(np.stack(faces))
            yield f"{count} × {height}×{width}", (photos_BHW3,), self(photos_BHW3)


def only_bytes(photos: Tensor) -> None:
    """Let the program refuse anything but uint8: "Tensor dtype mismatch! Expected: Byte"."""
    torch.ops.aten._assert_tensor_metadata.default(photos, dtype=torch.uint8)


class FramedLabeller(Labeller):
    """photos_1HW3 (uint8), frames_F23 (float32, see ``data.batch.framed_batch``) -> labels_FHW (uint8)."""

    axes: ClassVar = {"photos": {1: "height", 2: "width"}, "frames": {0: "faces"}}
    examples = (torch.zeros(1, 300, 280, 3, dtype=torch.uint8), torch.tensor([[[99.0, 9, 150], [-9, 99, 140]]] * 2))

    def forward(self, photos: Tensor, frames: Tensor) -> Tensor:  # type: ignore[override]
        only_bytes(photos)
        return self.parser.forward_framed(photos, frames).argmax(1).to(torch.uint8)

    def checks(self) -> Iterator[tuple[str, tuple[Tensor, ...], Tensor]]:
        """Drawn faces that are turned in larger photos."""
        for degrees, height, width in (((25,), 600, 500), ((-40, 170, 90), 300, 900)):
            photo, frames = turned_faces(degrees, height, width)
            inputs = torch.from_numpy(photo)[None], torch.from_numpy(np.stack(frames)).float()
            yield f"{len(frames)} turned in {height}×{width}", inputs, self(*inputs)


def turned_faces(degrees: Sequence[float], height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Synthetic faces side by side, each turned clockwise: (photo, uint8 (H, W, 3); matrix_23 of their frames, see
    ``data.batch.framed_batch``)."""
    photo = np.full((height, width, 3), 128, np.uint8)
    half = 0.45 * min(height, width / len(degrees))
    frames = []
    for index, angle in enumerate(degrees):
        centre_2 = np.array([width / len(degrees) * (index + 0.5), height / 2])
        face = draw_face(0, index, 2 * round(half))[0]
        frames.append(turned_square(centre_2, half, angle).matrix_23)
        to_photo_23 = frame_pixels(frames[-1], len(face), len(face))
        how = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_TRANSPARENT}
        cv2.warpAffine(face, to_photo_23, (width, height), dst=photo, **how)
    return photo, frames


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return 0 if export(options.checkpoints(args), args.onnx, args.program, args.framed) else 1


def export(
    checkpoints: Sequence[Path], onnx: Path | None = None, program: Path | None = None, framed: bool = False
) -> bool:
    """Write the parser that the checkpoints hold into the files that are named. framed: the frames are an input.

    Returns whether all were written: a file whose labels differ from the parser's is not kept. Raises InputError for
    checkpoints that cannot be used and folders that cannot be written.
    """
    parser = load_parser(checkpoints)
    parser.fold()
    labeller = (FramedLabeller if framed else Labeller)(parser).requires_grad_(False)
    traced = trace(labeller)
    formats = ((program, save_program, load_program), (onnx, save_onnx, load_onnx))
    return all([write(path, save, load, traced, labeller) for path, save, load in formats if path])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = Parser(__doc__)
    options.add_checkpoint_option(cli)
    cli.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="ONNX graph to write")
    cli.add_argument("--program", type=Path, metavar="FILE.pt2", help="torch.export program to write")
    cli.add_argument("--framed", action="store_true", help="for faces anywhere in a photo: their frames are an input")
    cli.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = cli.parse_args(argv)
    if not (args.onnx or args.program):
        raise InputError("nothing to write: name --onnx FILE.onnx, --program FILE.pt2, or both")
    for flag, path, suffix in (("--onnx", args.onnx, ".onnx"), ("--program", args.program, ".pt2")):
        if path is None:
            continue
        if path.suffix != suffix:
            raise InputError(f"{flag} {path}: the name must end in {suffix}")
        if not os.path.isdir(path.parent):
            raise InputError(f"{flag} {path}: there is no folder {path.parent}; make it, or choose another")
        options.refuse_existing(flag, path, args.overwrite)
    if args.onnx and (lacking := missing("onnx", "onnxscript", "onnxruntime")):
        raise InputError(f"--onnx needs packages that are missing: pip install {' '.join(lacking)}")
    return args


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def trace(labeller: Labeller) -> ExportedProgram:
    """The labeller as a program for inputs of any size and number."""
    shapes = {name: {axis: Dim(length, min=1) for axis, length in axes.items()} for name, axes in labeller.axes.items()}
    with torch.no_grad():
        return torch.export.export(labeller, labeller.examples, dynamic_shapes=shapes, strict=False)


def metadata(labeller: Labeller) -> dict[str, str]:
    """What both files say of themselves: names and RGB of the labels by id, as JSON, and what they take."""
    labels = labeller.parser.labels
    names, colours = (json.dumps(values) for values in (labels.names, labels.colours))
    return {"label_set": labels.name, "labels": names, "colours": colours, "photos": "RGB, uint8, 0 to 255"}


def save_program(program: ExportedProgram, path: Path, labeller: Labeller) -> None:
    """As a .pt2 file, with ``metadata`` as the extra file "metadata.json". Raises OSError."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata(labeller))})


def load_program(path: Path) -> Callable[..., Tensor]:
    """What ``save_program`` wrote: the labeller's inputs -> its labels."""
    return torch.export.load(path).module()


def save_onnx(program: ExportedProgram, path: Path, labeller: Labeller) -> None:
    """As an ONNX graph with the output "labels" and ``metadata``. Raises OSError."""
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        external_data=False,
        input_names=list(labeller.axes),
        output_names=["labels"],
        dynamic_shapes=labeller.axes,
        verbose=False,
    )
    onnx = importlib.import_module("onnx")
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata(labeller))
    onnx.save(graph, path)


def load_onnx(path: Path) -> Callable[..., Tensor]:
    """The graph under onnxruntime, on the CPU, in as many threads as torch has."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["labels"], feed)[0])

    return run


def write(
    path: Path,
    save: Callable[[ExportedProgram, Path, Labeller], None],
    load: Callable[[Path], Callable[..., Tensor]],
    program: ExportedProgram,
    labeller: Labeller,
) -> bool:
    """Save elsewhere, load again, compare with the labeller, and write the file where they agree.

    Returns whether the file was written. Raises OSError.
    """
    started = time.monotonic()
    with TemporaryDirectory(prefix="export") as folder:
        temporary = Path(folder) / path.name
        save(program, temporary, labeller)
        text = f"{path}: {temporary.stat().st_size / 2**20:.1f} MiB in {time.monotonic() - started:.0f} s"
        shares = agreement(load(temporary), labeller)
        text += f", labels as the model's own on {', '.join(f'{v:.3%} of {k}' for k, v in shares.items())}"
        if min(shares.values()) < AGREEMENT:
            print(f"error: {text}: below {AGREEMENT:.1%}, so it was not kept", file=sys.stderr)
            return False
        content = temporary.read_bytes()
    write_bytes(path, content)
    print(text)
    return True


@torch.inference_mode()
def agreement(function: Callable[..., Tensor], labeller: Labeller) -> dict[str, float]:
    """For each of the labeller's checks the share of the pixels with equal labels."""
    return {name: (function(*inputs) == labels).float().mean().item() for name, inputs, labels in labeller.checks()}


if __name__ == "__main__":
    sys.exit(run_main(main))
