"""Several parsers of the whole face as one: the mean of their probabilities."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Batch
from geometry.theta import enlarged
from models.parser import FaceParser, WholeFaceParser, WindowProbs
from utils.errors import InputError

FADE = 4  # a narrower window fades out over one part in so many of the way from its edge to its centre


class EnsembleParser(FaceParser):
    """Each face as its ``parsers`` see it on average; around a frame, as those do that look so far.

    Raises InputError for parsers of different label sets, and for one that does not see the face as a whole.
    """

    kind = "ensemble"
    networks = ()

    def __init__(self, parsers: Sequence[FaceParser]) -> None:
        labels = parsers[0].labels
        super().__init__(None, labels)
        self.parsers: list[WholeFaceParser] = nn.ModuleList()  # type: ignore[assignment]
        for parser in parsers:
            if parser.labels != labels:
                kinds = f"{parsers[0].kind} labels {labels.name}, {parser.kind} {parser.labels.name}"
                raise InputError(f"{kinds}: give checkpoints of one label set")
            if not isinstance(parser, WholeFaceParser):
                raise InputError(f"{parser.kind} cannot be averaged with other parsers: give its checkpoint alone")
            self.parsers.append(parser)

    def probabilities(self, batch: Batch) -> tuple[Tensor, None]:
        return torch.stack([parser.probabilities(batch)[0] for parser in self.parsers]).mean(0), None

    def window_probs(self, batch: Batch) -> WindowProbs:
        scales = [1.0 if batch.frames_B33 is None else parser.framed[1] for parser in self.parsers]
        return merged([parser.window_probs(batch) for parser in self.parsers], scales)

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        return torch.stack([parser(photos_BHW3) for parser in self.parsers]).mean(0)

    def framed_probs(self, photos_1HW3: Tensor, frames_F23: Tensor) -> WindowProbs:
        windows = [parser.framed_probs(photos_1HW3, frames_F23) for parser in self.parsers]
        return merged(windows, [parser.framed[1] for parser in self.parsers])

    def mirrored(self) -> "EnsembleParser":
        for parser in self.parsers:
            parser.mirrored()
        return self


def merged(windows: Sequence[WindowProbs], scales: Sequence[float]) -> WindowProbs:
    """Windows of one place as one, the widest: everywhere the mean of those that reach so far; the others fade out.

    windows: each of one window a face, all about the same centres. scales: of their sides, relative to each other.
    """
    widest = scales.index(max(scales))
    shares = [scale / scales[widest] for scale in scales]
    side = max(round(seen.probs[0].shape[-1] / share) for seen, share in zip(windows, shares, strict=True))
    total_BKSS, weights_SS = [], []
    for seen, share in zip(windows, shares, strict=True):
        margin = round(side * (1 - share) / 2)
        inside = side - 2 * margin
        (probs_BKss,) = seen.probs
        weight_s = probs_BKss.new_ones(inside)
        if margin:
            weight_s = (FADE * (1 - torch.linspace(-1, 1, inside, device=weight_s.device).abs())).clamp(max=1)
        weight_ss = weight_s[:, None] * weight_s
        probs_BKss = F.interpolate(probs_BKss, (inside, inside), mode="bilinear") * weight_ss
        total_BKSS.append(F.pad(probs_BKss, [margin] * 4))
        weights_SS.append(F.pad(weight_ss, [margin] * 4))
    # the outermost samples lie half a sample inside
    theta_B123, own_side = windows[widest].theta_BP23, windows[widest].probs[0].shape[-1]
    theta_B123 = enlarged(theta_B123, (1 - 1 / side) / (1 - 1 / own_side))
    return WindowProbs([torch.stack(total_BKSS).sum(0) / torch.stack(weights_SS).sum(0)], theta_B123)
