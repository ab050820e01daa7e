"""Write a parser, from decoded photos to label maps, as an ONNX graph and as a torch.export program, and check them.

Both take photos (B, H, W, 3), uint8 RGB, B of one size at once, any B, H and W, and give labels (B, H, W), uint8.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data.datasets.synthetic import draw_face
from models.loading import load_parser
from models.parser import FaceParser
from utils import options
from utils.cli import Parser
from utils.errors import InputError
from utils.files import write_whole
from utils.runtime import run_main

AXES = {0: "batch", 1: "height", 2: "width"}
AGREEMENT = 0.999  # share of the pixels that must have the parser's own label


class Labeller(nn.Module):
    """photos_BHW3 (uint8) -> labels_BHW (uint8)."""

    def __init__(self, parser: FaceParser) -> None:
        super().__init__()
        self.parser = parser

    def forward(self, photos: Tensor) -> Tensor:
        return self.parser(photos).argmax(1).to(torch.uint8)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    return 0 if export(options.checkpoints(args), args.onnx, args.program) else 1


def export(checkpoints: Sequence[Path], onnx: Path | None = None, program: Path | None = None) -> bool:
    """Write the parser that the checkpoints hold into the files that are named.

    Returns whether all were written: a file whose labels differ from the parser's is not kept. Raises InputError for
    checkpoints that cannot be used and folders that cannot be written.
    """
    parser = load_parser(checkpoints)
    parser.fold()
    labeller = Labeller(parser).requires_grad_(False)
    traced = trace(labeller)
    written = [write(program, save_program, load_program, traced, labeller)] if program else []
    written += [write(onnx, save_onnx, load_onnx, traced, labeller)] if onnx else []
    return all(written)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = Parser(__doc__)
    options.add_checkpoint_option(parser)
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx", help="where the ONNX graph goes")
    parser.add_argument("--program", type=Path, metavar="FILE.pt2", help="where the torch.export program goes")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    args = parser.parse_args(argv)
    if not (args.onnx or args.program):
        raise InputError("nothing to write: name --onnx FILE.onnx, --program FILE.pt2, or both")
    for flag, path, suffix in (("--onnx", args.onnx, ".onnx"), ("--program", args.program, ".pt2")):
        if path is None:
            continue
        if path.suffix != suffix:
            raise InputError(f"{flag} {path}: the name must end in {suffix}")
        if not os.path.isdir(path.parent):
            raise InputError(f"{flag} {path}: there is no folder {path.parent}; make it, or name another")
        if os.path.isdir(path):
            raise InputError(f"{flag} {path} is a folder: name a file")
        if os.path.exists(path) and not args.overwrite:
            raise InputError(f"{path} is there already: name another {flag}, or add --overwrite")
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if args.onnx and lacking:
        raise InputError(f"--onnx needs packages that are missing: pip install {' '.join(lacking)}")
    return args


def trace(labeller: Labeller) -> ExportedProgram:
    """The labeller as a program for any number of photos of any size."""
    example_BHW3 = torch.zeros(2, 300, 280, 3, dtype=torch.uint8)
    shapes = {"photos": {axis: Dim(name, min=1) for axis, name in AXES.items()}}
    with torch.no_grad():
        return torch.export.export(labeller, (example_BHW3,), dynamic_shapes=shapes, strict=False)


def save_program(program: ExportedProgram, path: Path) -> None:
    """As a .pt2 file. Raises OSError."""
    torch.export.save(program, path)


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    """photos_BHW3 -> labels_BHW, by what ``save_program`` wrote."""
    return torch.export.load(path).module()


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """As an ONNX graph with the input "photos" and the output "labels". Raises OSError."""
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        external_data=False,
        input_names=["photos"],
        output_names=["labels"],
        dynamic_shapes={"photos": AXES},
        verbose=False,
    )


def load_onnx(path: Path) -> Callable[[Tensor], Tensor] | None:
    """The graph under onnxruntime, on the CPU; None where that is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda photos_BHW3: torch.from_numpy(session.run(["labels"], {"photos": photos_BHW3.numpy()})[0])


def write(
    path: Path,
    save: Callable[[ExportedProgram, Path], None],
    load: Callable[[Path], Callable[[Tensor], Tensor] | None],
    program: ExportedProgram,
    labeller: Labeller,
) -> bool:
    """Save elsewhere, load again, compare with the labeller, and write the file where they agree.

    Returns whether the file was written. Raises InputError where the folder cannot be written.
    """
    started = time.monotonic()
    try:
        with TemporaryDirectory(prefix="export") as folder:
            temporary = Path(folder) / path.name
            save(program, temporary)
            text = f"{path}: {temporary.stat().st_size / 2**20:.1f} MiB in {time.monotonic() - started:.0f} s"
            function = load(temporary)
            if function is None:
                text += ", not checked (pip install onnxruntime)"
            else:
                shares = agreement(function, labeller)
                text += f", labels as the model's own on {', '.join(f'{v:.3%} of {k}' for k, v in shares.items())}"
                if min(shares.values()) < AGREEMENT:
                    print(f"error: {text}: below {AGREEMENT:.1%}, so it was not kept", file=sys.stderr)
                    return False
            content = temporary.read_bytes()
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror or error})") from error
    print(text)
    return True


@torch.inference_mode()
def agreement(function: Callable[[Tensor], Tensor], labeller: Labeller) -> dict[str, float]:
    """Drawn photos, larger and smaller than the networks' view -> share of the pixels with equal labels."""
    shares = {}
    for count, height, width in ((1, 384, 320), (3, 150, 200)):
        faces = [draw_face(0, index, max(height, width))[0][:height, :width] for index in range(count)]
        photos_BHW3 = torch.from_numpy(np.stack(faces))
        equal_BHW = function(photos_BHW3) == labeller(photos_BHW3)
        shares[f"{count} × {height}×{width}"] = equal_BHW.float().mean().item()
    return shares


if __name__ == "__main__":
    sys.exit(run_main(main))
