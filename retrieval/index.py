"""What finds the five nearest of many directions: our exact search, and those of faiss for large galleries.

Each takes the gallery's directions (``retrieval.ranking.directions``, float32) and returns a function that gives the
rows of the five nearest of each query, (Q, 5) int64, nearest first.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from retrieval.ranking import NEAREST, nearest
from utils.errors import InputError

Finder = Callable[[np.ndarray], np.ndarray]


def exact(gallery_GE: np.ndarray) -> Finder:
    return lambda queries_QE: nearest(gallery_GE, queries_QE).index_Q5


def faiss_flat(gallery_GE: np.ndarray) -> Finder:
    """All distances, by faiss: the same five."""
    return _faiss(gallery_GE, lambda faiss, size: faiss.IndexFlatIP(size))


def faiss_bytes(gallery_GE: np.ndarray) -> Finder:
    """All distances to vectors of one byte a number: a quarter of the memory, and nearly the same five."""

    def made(faiss: Any, size: int) -> Any:
        return faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)

    return _faiss(gallery_GE, made)


def _faiss(gallery_GE: np.ndarray, make: Callable[[Any, int], Any]) -> Finder:
    try:
        import faiss
    except ImportError as error:
        raise InputError("--index faiss needs faiss: pip install faiss-cpu") from error
    index = make(faiss, gallery_GE.shape[1])
    index.train(gallery_GE[:100_000])
    index.add(gallery_GE)
    return lambda queries_QE: index.search(queries_QE, NEAREST)[1]


INDEXES = {"exact": exact, "faiss": faiss_flat, "faiss-bytes": faiss_bytes}
