"""Embedded synthetic data set: faces drawn from random parameters, with exact masks.

Labels are HELEN's eleven. A pixel that is hidden by glasses or another thing is background (hair if hair hides
it); ears, neck and clothes are background, a beard is skin, and a shut eye or mouth has no eye or inner mouth.
"""

from data.datasets.synthetic.faces import COUNTS, SIZE, draw_face, draw_named, sample_names

__all__ = ["COUNTS", "SIZE", "draw_face", "draw_named", "sample_names"]
