"""From any photo to its faces and back: detection, alignment, one label map for the whole photo."""
