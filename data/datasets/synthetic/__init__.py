"""Embedded synthetic data set: faces drawn from random parameters, with exact masks.

Labels are HELEN's eleven. A pixel that is hidden by glasses, a hand or another thing is background (hair where hair
hides it); ears, neck and clothes are background, a beard is skin, and an eye or mouth that is shut has no eye or inner
mouth.
"""

from data.datasets.synthetic.faces import COUNTS, SIZE, SIZES, draw_face, draw_named, sample_names

__all__ = ["COUNTS", "SIZE", "SIZES", "draw_face", "draw_named", "sample_names"]
