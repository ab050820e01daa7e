"""Two parsers as one: the whole face by one, with the parts that another labels more finely drawn into it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.labels import NO_ID
from geometry.paste import Patch
from models.parser import FaceParser

WHOLE_SHARE = 0.25  # of ``whole`` in the mean of the two where both have a label; chosen on the validation split


class FusedParser(FaceParser):
    """All labels of ``whole``: those that ``parts`` has too mostly as it sees them (see ``WHOLE_SHARE``); what this
    leaves is divided among the others as ``whole`` sees them.

    Raises InputError where ``whole`` cannot tell the labels of ``parts``.
    """

    kind = "fused"
    networks = ()

    def __init__(self, whole: FaceParser, parts: FaceParser) -> None:
        super().__init__(None, whole.labels)
        self.own: Tensor
        self.theirs: Tensor
        self.others: Tensor
        self.whole, self.parts = whole, parts
        ids = whole.labels.map_to(parts.labels)
        self.shared = [(label, int(ids[label])) for label in range(len(whole.labels)) if ids[label] not in (0, NO_ID)]
        own, theirs = zip(*self.shared, strict=True)
        others = [label for label in range(len(whole.labels)) if label not in own]  # background first
        for name, numbers in (("own", own), ("theirs", theirs), ("others", others)):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)

    def fuse(self, whole_BKHW: Tensor, parts_BJHW: Tensor) -> Tensor:
        """Probabilities of both parsers for the same pixels, of one face or of several: those of ``labels``, of the
        shape of ``whole_BKHW``."""
        parts_BJHW = parts_BJHW / parts_BJHW.sum(-3, keepdim=True)  # where windows overlap, the sum is more than 1
        ours_BSHW, theirs_BSHW = whole_BKHW.index_select(-3, self.own), parts_BJHW.index_select(-3, self.theirs)
        shared_BSHW = theirs_BSHW.lerp(ours_BSHW, WHOLE_SHARE)
        rest_B1HW = (1 - shared_BSHW.sum(-3, keepdim=True)).clamp(min=0)
        others_BOHW = whole_BKHW.index_select(-3, self.others)
        others_B1HW = others_BOHW.sum(-3, keepdim=True)
        factor_B1HW = rest_B1HW / others_B1HW.clamp(min=1e-9)
        fused_BKHW = torch.empty_like(whole_BKHW).index_copy_(-3, self.own, shared_BSHW)
        fused_BKHW.index_copy_(-3, self.others, others_BOHW * factor_B1HW)
        # the background gets all of it where the other labels have nothing
        fused_BKHW[..., :1, :, :] += (rest_B1HW - others_B1HW * factor_B1HW).clamp(min=0)
        return fused_BKHW

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        whole_BKHW, _ = self.whole.probabilities(batch)
        parts_BJHW, theta_BP23 = self.parts.probabilities(batch)
        fused_BKHW = self.fuse(whole_BKHW, parts_BJHW)
        for fused_KHW, (height, width) in zip(fused_BKHW, batch.host.sizes_B2.tolist(), strict=True):
            fused_KHW[:, height:], fused_KHW[:, :, width:] = 0, 0  # windows may reach into the padding
        return fused_BKHW, theta_BP23

    def patches(self, batch: Batch, keep_probs: bool = False) -> Iterator[tuple[Patch, np.ndarray]]:
        """See ``FaceParser.patches``; the only window is that of the whole face."""
        both = zip(self.whole.patches(batch, True), self.parts.patches(batch, True), strict=True)
        for (whole, theta_P23), (parts, _) in both:
            assert whole.probs_KYX is not None
            probs_KYX = self.fuse(whole.probs_KYX, _moved(parts, whole))
            confidence_YX, labels_YX = probs_KYX.max(0)
            yield (
                whole._replace(
                    labels_YX=labels_YX.byte(), confidence_YX=confidence_YX, probs_KYX=probs_KYX if keep_probs else None
                ),
                theta_P23,
            )

    def forward(self, photos_BHW3: Tensor) -> Tensor:
        return self.fuse(self.whole(photos_BHW3), self.parts(photos_BHW3))

    def forward_framed(self, photos_1HW3: Tensor, frames_F23: Tensor) -> Tensor:
        framed = (parser.forward_framed(photos_1HW3, frames_F23) for parser in (self.whole, self.parts))
        return self.fuse(*framed)

    def mirrored(self) -> "FusedParser":
        self.whole, self.parts = self.whole.mirrored(), self.parts.mirrored()
        return self


def _moved(patch: Patch, box: Patch) -> Tensor:
    """A patch's probabilities on the pixels of another's box, background where it has none."""
    assert patch.probs_KYX is not None
    height, width = box.labels_YX.shape
    moved_KYX = patch.probs_KYX.new_zeros(len(patch.probs_KYX), height, width)
    moved_KYX[0] = 1
    down, right = patch.top - box.top, patch.left - box.left
    (top, bottom), (left, right_end) = (
        [min(max(edge, 0), length) for edge in (offset, offset + reach)]
        for offset, length, reach in zip((down, right), (height, width), patch.labels_YX.shape, strict=True)
    )
    part_KYX = patch.probs_KYX[:, top - down : bottom - down, left - right : right_end - right]
    moved_KYX[:, top:bottom, left:right_end] = part_KYX
    return moved_KYX
