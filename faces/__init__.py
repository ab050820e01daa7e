"""From any photo to its faces and back: detection, alignment, one label map for the whole photo.

from faces import load
parse = load()
scene = parse("photo.jpg")  # scene.labels_HW, scene.faces
"""

from faces.loading import load
from faces.scene import Face, Scene, SceneParser

__all__ = ["Face", "Scene", "SceneParser", "load"]
