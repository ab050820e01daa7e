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
Finder = Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
    """The five nearest of each query. index_Q5: rows of the gallery, nearest first. distances_Q5: in [0, 1]."""

    index_Q5: np.ndarray
    distances_Q5: np.ndarray


class Accuracy(NamedTuple):
    """Shares of the queries whose person is the nearest, or among the five nearest."""

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


def nearest(gallery_GE: np.ndarray, queries_QE: np.ndarray) -> Found:
    """The five rows of the gallery that are nearest to each query: exact search. Both: ``directions``, five rows or
    more."""
    gallery = torch.from_numpy(gallery_GE)
    chosen = [_best(gallery, torch.from_numpy(queries_QE[k : k + ROWS])) for k in range(0, len(queries_QE), ROWS)]
    return ranked(gallery_GE, queries_QE, np.concatenate(chosen))


def _best(gallery_GE: Tensor, queries_QE: Tensor) -> np.ndarray:
    return (queries_QE @ gallery_GE.T).topk(NEAREST).indices.numpy()


def ranked(gallery_GE: np.ndarray, queries_QE: np.ndarray, index_Q5: np.ndarray) -> Found:
    """These rows with their distances arccos(cosine) / pi, in double precision, nearest first."""
    chosen_Q5E = gallery_GE[index_Q5].astype(np.float64)
    cosines_Q5 = np.einsum("qke,qe->qk", chosen_Q5E, queries_QE.astype(np.float64))
    distances_Q5 = np.arccos(cosines_Q5.clip(-1, 1)) / np.pi  # rounding reaches beyond 1 for equal pictures
    order_Q5 = np.argsort(distances_Q5, axis=1, kind="stable")
    return Found(np.take_along_axis(index_Q5, order_Q5, 1), np.take_along_axis(distances_Q5, order_Q5, 1))


def accuracy(found: Found, gallery: People, queries: People) -> Accuracy:
    """Top-1 and top-5 by name: the release compares the label of a query with the index of a photo."""
    names_G, names_Q = np.array(gallery.names)[gallery.labels_N], np.array(queries.names)[queries.labels_N]
    hits_Q5 = names_G[found.index_Q5] == names_Q[:, None]
    return Accuracy(float(hits_Q5[:, 0].mean()), float(hits_Q5.any(1).mean()))


def search(gallery_GE: np.ndarray, queries_QE: np.ndarray) -> Found:
    """``nearest`` of embeddings, less the gallery's mean."""
    mean_E = gallery_GE.mean(0)
    return nearest(directions(gallery_GE, mean_E), directions(queries_QE, mean_E))


def faiss_index(kind: str, gallery_GE: np.ndarray) -> Finder:
    """A search of a large gallery by faiss. kind: what its ``index_factory`` takes."""
    try:
        import faiss
    except ImportError as error:
        raise InputError("--index faiss needs faiss: pip install faiss-cpu") from error
    index = faiss.index_factory(gallery_GE.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery_GE[:100_000])
    index.add(gallery_GE)
    return lambda queries_QE: index.search(queries_QE, NEAREST)[1]


# each takes the gallery's directions and gives what finds the rows of the five nearest of each query, (Q, 5) int64,
# nearest first. "faiss": all distances, the same five; "faiss-bytes": to vectors of one byte a number, nearly the same
INDEXES: dict[str, Callable[[np.ndarray], Finder]] = {
    "exact": lambda gallery_GE: lambda queries_QE: nearest(gallery_GE, queries_QE).index_Q5,
    "faiss": partial(faiss_index, "Flat"),
    "faiss-bytes": partial(faiss_index, "SQ8"),
}
