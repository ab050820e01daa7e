"""From a batch to label maps on the photos' own grids: what validation, evaluate.py and predict.py share."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.augment import whole
from data.loading import Batch, Faces, evaluation_batches
from models.baseline import baseline_theta
from models.grid import compose, image_to_padded
from models.stn_icnn import STNiCNN
from models.windows import target_theta
from utils import runtime
from utils.engine import evaluate
from utils.metrics import scores
from utils.visualize import draw_windows, overlay, tile

CROPS = ("predicted", "baseline", "truth", "none")


def true_theta(batch: Batch, model: STNiCNN) -> Tensor:
    """The windows around the true parts, theta_BP23 in the frame of each photo."""
    where = batch.centres_BP2, batch.extents_BP2, batch.present_BP
    return target_theta(*where, batch.sizes_B2, *model.config.windows)


def enlarge(logits_B9hw: Tensor, sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """The rough mask merely enlarged to each photo (bilinear logits, argmax): labels_BHW uint8."""
    labels_BHW = torch.zeros(len(logits_B9hw), height, width, dtype=torch.uint8, device=logits_B9hw.device)
    for b, (own_height, own_width) in enumerate(sizes_B2.tolist()):
        large_9HW = F.interpolate(logits_B9hw[b : b + 1].float(), (own_height, own_width), mode="bilinear")[0]
        labels_BHW[b, :own_height, :own_width] = large_9HW.argmax(0).byte()
    return labels_BHW


def find_windows(model: STNiCNN, batch: Batch, crops: str, logits_B9hw: Tensor) -> Tensor:
    """theta_BP23 in the frame of each photo: "predicted", from the "baseline" cropper, or the "truth"."""
    if crops == "truth":
        return true_theta(batch, model)
    if crops == "baseline":
        return baseline_theta(logits_B9hw.argmax(1), batch.sizes_B2, *model.config.windows)
    return model.locate(logits_B9hw, batch.sizes_B2)


def label_crops(model: STNiCNN, batch: Batch, crops: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """(part logits, theta_BP23 in the frame of each photo, theta_BP23 in that of the padded batch)."""
    logits_B9hw = torch.empty(0) if crops == "truth" else model.coarse(whole(batch, None, model.config.coarse_size))
    theta_BP23 = find_windows(model, batch, crops, logits_B9hw)
    padded_B33 = image_to_padded(batch.sizes_B2, *batch.photos_BHW3.shape[1:3])
    return model.label_crops(batch.photos_BHW3, theta_BP23, batch.sizes_B2), theta_BP23, compose(padded_B33, theta_BP23)


def label_probabilities(model: STNiCNN, batch: Batch, crops: str = "predicted") -> tuple[Tensor, Tensor]:
    """(canvas_B9HW of probabilities on the padded photos' grid, theta_BP23 in the frame of each photo)."""
    part_logits, theta_BP23, padded_BP23 = label_crops(model, batch, crops)
    return model.paste(part_logits, padded_BP23, *batch.photos_BHW3.shape[1:3]), theta_BP23


def label_maps(model: STNiCNN, batch: Batch, crops: str = "predicted") -> tuple[Tensor, Tensor]:
    """(labels_BHW uint8 on the padded photos' grid, theta_BP23 in the frame of each photo)."""
    part_logits, theta_BP23, padded_BP23 = label_crops(model, batch, crops)
    return model.paste_labels(part_logits, padded_BP23, *batch.photos_BHW3.shape[1:3]), theta_BP23


def label_batch(model: STNiCNN, batch: Batch, crops: str = "predicted") -> Tensor:
    """labels_BHW uint8 on the padded photos' grid. crops: one of ``CROPS``; "none": the enlarged rough mask."""
    if crops == "none":
        logits_B9hw = model.coarse(whole(batch, None, model.config.coarse_size))
        return enlarge(logits_B9hw, batch.sizes_B2, *batch.labels_BHW.shape[-2:])
    return label_maps(model, batch, crops)[0]


def validation_f1(
    model: STNiCNN, faces: Faces, crops: str, batch_size: int, device: torch.device, workers: int
) -> dict[str, float]:
    """Paper-protocol overall F1 and strict mean of a split, over all processes."""
    batches = evaluation_batches(faces, batch_size, runtime.rank(), runtime.world_size(), workers)
    _, matrices_N99 = evaluate(lambda batch: label_batch(model, batch, crops), batches, device)
    total_99 = runtime.sum_over_processes(matrices_N99.sum(0).to(device))
    result = scores(total_99.cpu().numpy())
    return {"f1": result["paper"]["overall"] or 0.0, "strict": result["strict"]["mean"] or 0.0}


def first_batch(faces: Faces, count: int, device: torch.device) -> Batch:
    """The first faces of a split, for pictures."""
    items = [faces[i, (0, 0, i)] for i in range(min(count, len(faces)))]
    return faces.collate(items).to(device)


def face_pictures(batch: Batch, labels_BHW: Tensor, theta_BP23: Tensor | None = None) -> Iterable[np.ndarray]:
    """Each photo under its labels, with its windows where given: uint8 (H, W, 3)."""
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        photo = batch.photos_BHW3[b, :height, :width].cpu().numpy()
        shown = overlay(photo, labels_BHW[b, :height, :width].cpu().numpy())
        yield shown if theta_BP23 is None else draw_windows(shown, theta_BP23[b].float().cpu().numpy())


def progress_picture(batch: Batch, labels_BHW: Tensor, theta_BP23: Tensor | None = None) -> np.ndarray:
    """Upper row: predicted, with windows; lower row: true. uint8 (H, W, 3)."""
    predicted = list(face_pictures(batch, labels_BHW, theta_BP23))
    true = list(face_pictures(batch, batch.labels_BHW))
    return tile(predicted + true, len(predicted), 192)
