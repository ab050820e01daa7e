"""What finds the five nearest of many directions: our exact search, and those of faiss for large galleries.

Each takes the gallery's directions (``retrieval.ranking.directions``, float32) and returns a function that gives the
rows of the five nearest of each query, (Q, 5) int64, nearest first.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from retrieval.ranking import NEAREST, nearest
from utils.errors import InputError

Finder = Callable[[np.ndarray], np.ndarray]


def exact(gallery_GE: np.ndarray) -> Finder:
    return lambda queries_QE: nearest(gallery_GE, queries_QE).index_Q5


def faiss_index(kind: str, gallery_GE: np.ndarray) -> Finder:
    """By faiss. kind: what its ``index_factory`` takes."""
    try:
        import faiss
    except ImportError as error:
        raise InputError("--index faiss needs faiss: pip install faiss-cpu") from error
    index = faiss.index_factory(gallery_GE.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery_GE[:100_000])
    index.add(gallery_GE)
    return lambda queries_QE: index.search(queries_QE, NEAREST)[1]


# "faiss": all distances, the same five; "faiss-bytes": to vectors of one byte a number, nearly the same
INDEXES: dict[str, Callable[[np.ndarray], Finder]] = {
    "exact": exact,
    "faiss": partial(faiss_index, "Flat"),
    "faiss-bytes": partial(faiss_index, "SQ8"),
}
