"""Photos and their label maps in one batch."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.images import make_image_256, warp_frame
from data.labels import LabelSet
from geometry.theta import enlarged, frame_to_photo

Key = tuple[int, int, int]  # (seed, epoch, position in the epoch)


FRAME_SIDE = 512  # pixels of the square in which a framed face is seen, as in CelebAMask-HQ; nothing is stored at it


@dataclass(frozen=True)
class Batch:
    """Photos of any size in one batch, padded with zeros at the right and bottom.

    labels: what the label maps' ids mean. photos_BHW3: uint8, RGB. labels_BHW: uint8 ids. images_256_BSS3: uint8, the
    photos stretched to 256 x 256. sizes_B2: int64 (height, width). present_BP: bool; centres_BP2, extents_BP2: float32
    pixels (x, y); of the six parts, P = 0 for label sets that lack some. index_B: int64 position in the split.
    keys_B3: int64 (seed, epoch, position in the epoch), from which augmentation is drawn, whatever the batch size or
    the number of processes; on the CPU always.

    Faces framed in larger photos (``framed_batch``) have no truth. frames_B33: float32, normalised coordinates of each
    face's square (see ``FRAME_SIDE``) to those of its photo; photo_B: int64, which photo it is in, so that photos_BHW3
    holds each photo once; images_256_BSS3 are those of the squares, and sizes_B2 the sizes of the faces' photos. None:
    each photo is a face. origin: the batch that was moved to the device; see ``host``.
    """

    labels: LabelSet
    photos_BHW3: Tensor
    labels_BHW: Tensor
    images_256_BSS3: Tensor
    sizes_B2: Tensor
    present_BP: Tensor
    centres_BP2: Tensor
    extents_BP2: Tensor
    index_B: Tensor
    keys_B3: Tensor
    frames_B33: Tensor | None = None
    photo_B: Tensor | None = None
    origin: "Batch | None" = None

    @property
    def host(self) -> "Batch":
        """The batch as it was on the CPU: reading its values waits for no device."""
        return self.origin or self

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies out of pinned memory are not waited for."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in self._tensors().items() if name != "keys_B3"
        }
        return replace(self, **moved, origin=self.host)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the DataLoader calls this."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors().items()})

    def part(self, faces: slice) -> "Batch":
        """Some of the faces of ``framed_batch``, in the same photos."""
        kept = {name: value[faces] for name, value in self._tensors().items() if name != "photos_BHW3"}
        return replace(self, **kept, origin=None if self.origin is None else self.origin.part(faces))

    def widened(self, scale: float) -> "Batch":
        """Framed faces in frames of ``scale`` times the side, whose small images stay as they are."""
        if self.frames_B33 is None:
            return self
        origin = None if self.origin is None else self.origin.widened(scale)
        return replace(self, frames_B33=enlarged(self.frames_B33, scale), origin=origin)

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def photo_batch(photos: list[np.ndarray], labels: LabelSet, with_images_256: bool = True) -> Batch:
    """Photos of one size, uint8 (H, W, 3), as the batch that a data set would give; without truth.
    with_images_256: False leaves images_256_BSS3 empty."""
    images_256 = [make_image_256(photo) if with_images_256 else photo[:0, :0] for photo in photos]
    return _without_truth(photos, labels, images_256)


def framed_batch(photos: list[np.ndarray], frames: list[list[np.ndarray]], labels: LabelSet) -> Batch:
    """Faces in photos of one size, uint8 (H, W, 3), as a batch without truth.

    frames: for each photo those of its faces: float64 (2, 3), a square's coordinates, -1 to 1 from edge to edge
    (x, y), to pixels of the photo.
    """
    faces = [(index, matrix) for index, matrices in enumerate(frames) for matrix in matrices]
    batch = _without_truth(photos, labels, [warp_frame(photos[index], matrix) for index, matrix in faces])
    frames_B23 = torch.from_numpy(np.stack([matrix for _, matrix in faces]))
    return replace(
        batch,
        frames_B33=frame_to_photo(frames_B23, batch.sizes_B2, FRAME_SIDE).float(),
        photo_B=torch.tensor([index for index, _ in faces]),
    )


def _without_truth(photos: list[np.ndarray], labels: LabelSet, images_256: list[np.ndarray]) -> Batch:
    """A batch of as many faces as small images, in photos of one size."""
    count, (height, width), parts = len(images_256), photos[0].shape[:2], len(labels.part_ids)
    none_BP2 = torch.zeros(count, parts, 2)
    return Batch(
        labels=labels,
        photos_BHW3=torch.from_numpy(np.stack(photos) if len(photos) > 1 else np.require(photos[0][None], None, "W")),
        labels_BHW=torch.zeros(1, 1, 1, dtype=torch.uint8).expand(count, height, width),
        images_256_BSS3=torch.from_numpy(np.stack(images_256)),
        sizes_B2=torch.tensor([[height, width]]).expand(count, 2),
        present_BP=torch.zeros(count, parts, dtype=torch.bool),
        centres_BP2=none_BP2,
        extents_BP2=none_BP2,
        index_B=torch.arange(count),
        keys_B3=torch.zeros(count, 3, dtype=torch.long),
    )
