"""Who is nearest: embeddings of faces, and their distances."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retrieval.people import People
from utils.errors import InputError

FACES, ROWS = 32, 256  # at once: embedded, and compared
NEAREST = 5


class Found(NamedTuple):
    """The five nearest of each query. index_Q5: rows of the gallery, nearest first. distances_Q5: in [0, 1]."""

    index_Q5: np.ndarray
    distances_Q5: np.ndarray


class Accuracy(NamedTuple):
    """Shares of the queries whose person is the nearest, or among the five nearest; of those whose person the gallery
    has."""

    top1: float
    top5: float


@torch.no_grad()
def features(network: nn.Module, crops_NSS3: np.ndarray, device: torch.device) -> Tensor:
    """Embeddings, float32 (N, E), of aligned faces (uint8 (N, S, S, 3)), on the CPU."""
    parts = []
    for start in range(0, len(crops_NSS3), FACES):
        faces = torch.from_numpy(crops_NSS3[start : start + FACES]).to(device).permute(0, 3, 1, 2).float()
        parts.append(network(faces).float().cpu())
    return torch.cat(parts)


def embed(network: nn.Module, crops_NSS3: np.ndarray, device: torch.device) -> np.ndarray:
    """``features`` of length 1. Raises InputError where they are not finite."""
    rows_NE = F.normalize(features(network, crops_NSS3, device), eps=1e-5)
    if not rows_NE.isfinite().all():
        raise InputError("embeddings that are not finite: choose another --checkpoint")
    return rows_NE.numpy()


def directions(embeddings_NE: np.ndarray, mean_E: np.ndarray) -> np.ndarray:
    """Embeddings less the gallery's mean, of length 1, in their own precision."""
    centred_NE = embeddings_NE - mean_E
    return centred_NE / np.maximum(np.linalg.norm(centred_NE, axis=1, keepdims=True), 1e-12).astype(centred_NE.dtype)


def search(gallery_GE: np.ndarray, queries_QE: np.ndarray, index: str = "exact", centred: bool = True) -> Found:
    """The five nearest of five or more embeddings of length 1, by arccos(cosine) / pi in double precision. index: one
    of ``INDEXES``, which finds them. centred: compare ``directions`` from the gallery's mean."""
    if centred:
        mean_E = gallery_GE.mean(0)
        gallery_GE, queries_QE = directions(gallery_GE, mean_E), directions(queries_QE, mean_E)
    index_Q5 = INDEXES[index](gallery_GE, queries_QE)
    chosen_Q5E = gallery_GE[index_Q5].astype(np.float64)
    cosines_Q5 = np.einsum("qke,qe->qk", chosen_Q5E, queries_QE.astype(np.float64))
    distances_Q5 = np.arccos(cosines_Q5.clip(-1, 1)) / np.pi  # rounding reaches beyond 1 for equal pictures
    order_Q5 = np.argsort(distances_Q5, axis=1, kind="stable")
    return Found(np.take_along_axis(index_Q5, order_Q5, 1), np.take_along_axis(distances_Q5, order_Q5, 1))


def accuracy(found: Found, gallery: People, queries: People) -> Accuracy | None:
    """Top-1 and top-5 by name: the release compares the label of a query with the index of a photo. None where the
    gallery has none of the people."""
    known_Q = np.isin(queries.names_N, gallery.names_N)
    hits_Q5 = (gallery.names_N[found.index_Q5] == queries.names_N[:, None])[known_Q]
    return Accuracy(float(hits_Q5[:, 0].mean()), float(hits_Q5.any(1).mean())) if len(hits_Q5) else None


def exact_rows(gallery_GE: np.ndarray, queries_QE: np.ndarray) -> np.ndarray:
    """By all cosines."""
    gallery, queries = torch.from_numpy(gallery_GE), torch.from_numpy(queries_QE)
    found = [(part_RE @ gallery.T).topk(NEAREST).indices for part_RE in queries.split(ROWS)]
    return torch.cat(found).numpy()


def faiss_rows(kind: str, gallery_GE: np.ndarray, queries_QE: np.ndarray) -> np.ndarray:
    """By faiss, in a large gallery. kind: what its ``index_factory`` takes. Raises InputError where it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise InputError("--index faiss needs faiss: pip install faiss-cpu") from error
    index = faiss.index_factory(gallery_GE.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery_GE[:100_000])
    index.add(gallery_GE)
    return index.search(queries_QE, NEAREST)[1]


# each gives the rows of the gallery that are nearest to each query, (Q, 5) int64, nearest first. "faiss": all
# distances, the same five; "faiss-bytes": to vectors of one byte a number, nearly the same
INDEXES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "exact": exact_rows,
    "faiss": partial(faiss_rows, "Flat"),
    "faiss-bytes": partial(faiss_rows, "SQ8"),
}
