"""Faces framed in larger photos: the frame, what the parser sees of it, and the way back to the photo's own grid."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from data.batch import FRAME_SIDE, framed_batch, photo_batch
from data.datasets.synthetic import draw_face
from data.images import make_image_256, warp_frame
from data.labels import CELEBAMASK, NINE
from data.view import View
from experiments.scenes import detection_of
from faces import load
from faces.align import frame_of, square, whole_photo
from faces.scene import SceneParser, compose_scene, overlapping, window_distance
from geometry import paste as geometry_paste
from geometry.paste import Patch, paste, paste_any
from geometry.sampling import crop
from geometry.theta import window_corners, window_theta
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from models.parser import FaceParser
from tests.tiny_parser import TinyConfig, TinyParser
from utils.errors import InputError

TIES = 0.002  # share of pixels half way between two samples, of which either is the nearest


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    return load_for_inference([SHIPPED_WEIGHTS], torch.device("cpu"))


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return cv2.resize(draw_face(3, 8, 192)[0], (FRAME_SIDE, FRAME_SIDE), interpolation=cv2.INTER_CUBIC)


def turned_in(photo: np.ndarray, degrees: float, height: int, width: int, centre: tuple[float, float]):
    """(a larger grey photo that shows ``photo`` turned clockwise at ``centre``, matrix_23 of its frame)."""
    side = photo.shape[0]
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    frame = square(np.array(centre), np.array([cos, sin]) * side / 2).matrix_23
    pixels_23 = np.array([[cos, -sin, 0], [sin, cos, 0]])
    pixels_23[:, 2] = np.array(centre) - pixels_23[:, :2] @ np.full(2, (side - 1) / 2)
    grey = np.full((height, width, 3), 128, np.uint8)
    cv2.warpAffine(
        photo, pixels_23, (width, height), dst=grey, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_TRANSPARENT
    )
    return grey, frame


def paste_turned(probs: list[Tensor], theta_P23: Tensor, *arguments, **options) -> Patch:
    """Of one face."""
    (patch,) = geometry_paste.paste_turned([p[None] for p in probs], theta_P23[None].numpy(), *arguments, **options)
    return patch


def test_the_frame_by_hand_which_turns_with_the_face():
    # eyes 40 apart in the row 100, mouth corners 60 below: half the side is max(2 * 40, 1.8 * 60) = 108
    points = np.array([(80, 100), (120, 100), (100, 130), (85, 160), (115, 160)], float)
    assert frame_of(points).matrix_23 == pytest.approx(np.array([[108, 0, 100], [0, 108, 106]]))
    for degrees in (-170, -60, 0, 30, 90):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turned = points @ np.array([[cos, sin], [-sin, cos]])  # clockwise, as y points down
        assert frame_of(turned).degrees == pytest.approx(degrees)
        assert np.linalg.det(frame_of(turned).matrix_23[:, :2]) == pytest.approx(108**2)
    assert np.linalg.det(frame_of(np.full((5, 2), 7.0)).matrix_23[:, :2]) > 0  # of points that coincide


@pytest.mark.parametrize("degrees", [35, 180])
def test_a_turned_face_is_seen_upright(face, degrees):
    photo, frame = turned_in(face, degrees, 900, 1000, (480, 430))
    assert np.abs(warp_frame(photo, frame).astype(int) - make_image_256(face))[8:-8, 8:-8].mean() < 3
    view = View(framed_batch([photo], [[frame]], NINE))
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    for size in (128, 300):  # from the small image, and from the photo
        expected = View(photo_batch([face], NINE)).photo(size)
        assert (view.photo(size)[inner] - expected[inner]).abs().mean() < 0.015
    theta = window_theta(torch.tensor([[[200.0, 240.0]]]), torch.tensor([[[101.0]]]), torch.tensor([[512, 512]]))
    expected = crop(torch.from_numpy(face)[None], theta, 101)
    assert (view.crops(theta, 101) - expected).abs().mean() < 0.015


def test_several_photos_share_a_batch_and_each_is_held_once():
    photos = [np.full((60, 80, 3), value, np.uint8) for value in (10, 200)]
    frame = whole_photo(60, 80).matrix_23
    batch = framed_batch(photos, [[frame, frame], [frame]], NINE)
    assert batch.photos_BHW3.shape == (2, 60, 80, 3)
    theta = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]]).expand(3, 1, 2, 3)
    assert View(batch).crops(theta, 5).mean((1, 2, 3, 4)).tolist() == pytest.approx([10 / 255, 10 / 255, 200 / 255])


def on_canvas(patch: Patch, like: Tensor) -> Tensor:
    """A patch's probabilities on a canvas of background."""
    canvas_KHW = torch.zeros_like(like)
    canvas_KHW[0] = 1
    rows, columns = patch.labels_YX.shape
    canvas_KHW[:, patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.probs_KYX
    return canvas_KHW


def labels_on(patch: Patch, height: int, width: int) -> Tensor:
    labels_HW, (rows, columns) = torch.zeros(height, width, dtype=torch.uint8), patch.labels_YX.shape
    labels_HW[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.labels_YX
    return labels_HW


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("shape", "turned"), [((50, 70), True), ((1, 30), True), ((50, 70), False)])
def test_the_paste_of_a_whole_canvas_equals_that_of_the_windows_alone_turned_or_not(shape, turned, mode):
    probs = [torch.randn(2, 3, 17, 17).softmax(1), torch.randn(2, 2, 17, 17).softmax(1)]
    theta = torch.randn(2, 2, 2, 3) * 0.5
    if not turned:
        theta[..., 0, 1] = theta[..., 1, 0] = 0
        theta[..., [0, 1], [0, 1]] = theta[..., [0, 1], [0, 1]].abs()
    canvas_BKHW = paste_any(probs, theta, *shape, mode)
    if not turned:
        assert (paste(probs, theta, *shape, mode) - canvas_BKHW).abs().amax(1).gt(1e-4).float().mean() < TIES
    for b in range(2):
        patch = paste_turned([p[b] for p in probs], theta[b], *shape, mode, keep_probs=True)
        expected_KHW = on_canvas(patch, canvas_BKHW[b])
        assert (expected_KHW[1:] > 0).any()
        assert (expected_KHW - canvas_BKHW[b]).abs().amax(0).gt(1e-4).float().mean() < TIES
        assert torch.equal(patch.labels_YX, patch.probs_KYX.argmax(0).byte())
        assert torch.equal(patch.confidence_YX, patch.probs_KYX.amax(0))


@pytest.mark.parametrize("broken", [float("nan"), 0.0])
def test_windows_that_are_no_windows_label_nothing(broken):
    theta = torch.full((1, 2, 3), broken)
    assert paste_turned([torch.full((2, 5, 5), 0.5)], theta, 20, 20).labels_YX.numel() == 0
    canvas_BKHW = paste_any([torch.full((1, 2, 5, 5), 0.5)], theta[None], 20, 20)
    assert torch.equal(canvas_BKHW[0, :, 3, 4], torch.tensor([1.0, 0.0]))
    assert not canvas_BKHW[:, 1].any()


def test_labels_of_a_framed_photo_equal_those_of_the_photo_itself(parser, face):
    with torch.inference_mode():
        plain_HW = parser.parse(photo_batch([face], NINE)).labels_BHW[0]
        ((patch, _),) = parser.patches(framed_batch([face], [[whole_photo(512, 512).matrix_23]], NINE))
    assert (plain_HW > 0).float().mean() > 0.02
    assert (labels_on(patch, 512, 512) != plain_HW).float().mean() < 2e-4


@pytest.mark.parametrize("crops", ["predicted", "none"])  # six windows, or one for the whole face
def test_labels_come_back_to_a_turned_face(face, crops):
    parser = load_for_inference([SHIPPED_WEIGHTS], torch.device("cpu"), crops)
    photo, frame = turned_in(face, 40, 900, 1000, (480, 430))
    with torch.inference_mode():
        plain_HW = parser.parse(photo_batch([face], parser.labels)).labels_BHW[0].numpy()
        (found,) = parser.patches(framed_batch([photo], [[frame]], parser.labels))
    scene = compose_scene(parser.labels, (900, 1000), [found], [square(np.zeros(2), np.ones(2))], [None])
    pixels_23 = cv2.getRotationMatrix2D((255.5, 255.5), -40, 1)
    pixels_23[:, 2] += np.array([480, 430]) - 255.5
    expected_HW = cv2.warpAffine(plain_HW, pixels_23, (1000, 900), flags=cv2.INTER_NEAREST)
    both = (expected_HW > 0) | (scene.labels_HW > 0)
    assert (expected_HW[both] == scene.labels_HW[both]).mean() > 0.93


def test_a_parser_takes_the_photo_and_its_frames_as_tensors_too(parser, face):
    photo, frame = turned_in(face, -100, 420, 400, (200, 210))
    frames = np.stack([frame, frame * np.array([1.1, 1.1, 1])])
    for model in (parser, TinyParser(TinyConfig(), CELEBAMASK).eval()):
        with torch.inference_mode():
            canvas_FKHW = model.forward_framed(torch.from_numpy(photo)[None], torch.from_numpy(frames).float())
            patches = list(model.patches(framed_batch([photo], [[*frames]], model.labels)))
        for canvas_KHW, (patch, _) in zip(canvas_FKHW, patches, strict=True):
            expected_HW = labels_on(patch, 420, 400)
            assert (expected_HW > 0).float().mean() > 0.01
            assert (canvas_KHW.argmax(0) != expected_HW).float().mean() < 1e-3


def test_a_parser_without_frames_says_so():
    with pytest.raises(InputError, match="framed: tiny parses whole photos only"):
        FaceParser.framed_probs(TinyParser(TinyConfig(), CELEBAMASK), torch.zeros(1, 1, 1, 3), torch.zeros(1, 2, 3))


def test_where_faces_overlap_the_nearest_decides_and_areas_are_those_of_its_own_pixels():
    patches = []
    for owner, x in ((1, 3), (2, 5)):
        theta = window_theta(torch.tensor([[[x, 4.0]]]), torch.tensor([[[5.0]]]), torch.tensor([[9, 9]]))[0]
        ids_YX, confidence_YX = torch.full((5, 5), owner + 2, dtype=torch.uint8), torch.full((5, 5), owner / 4)
        patches.append((Patch(2, x - 2, ids_YX, confidence_YX, None), theta.double().numpy()))
    patches[0][0].labels_YX[2, 2] = 0
    scene = compose_scene(NINE, (9, 9), patches, [square(np.zeros(2), np.ones(2))] * 2, [None] * 2)
    owners_HW = np.zeros((9, 9), np.uint8)
    owners_HW[2:7, 1:5], owners_HW[2:7, 5:8] = 1, 2  # half way between both centres the first face's
    owners_HW[4, 3] = 0  # the first face's own background, where the other one has a label
    assert np.array_equal(scene.owners_HW, owners_HW)
    assert np.array_equal(scene.labels_HW, np.where(owners_HW > 0, owners_HW + 2, 0))
    for owner, face in enumerate(scene.faces, 1):
        assert face.areas == {NINE.names[owner + 2]: (owners_HW == owner).sum()}
        assert face.confidences == {NINE.names[owner + 2]: owner / 4}


def test_a_group_photo_is_parsed_in_chunks_as_all_at_once(monkeypatch):
    parser = TinyParser(TinyConfig(), CELEBAMASK).eval()
    faces = np.stack([draw_face(0, k, 48)[0] for k in range(12)]).reshape(3, 4, 48, 48, 3)
    photo = faces.swapaxes(1, 2).reshape(3 * 48, 4 * 48, 3)
    centres = [(48 * (k % 4) + 23.5, 48 * (k // 4) + 23.5) for k in range(12)]
    found = [detection_of(square(np.array(centre), np.array([23.0, 3.0]))) for centre in centres]
    (at_once,) = SceneParser(parser, None, batch_size=12).parse_found([photo], [found])
    seen: list[int] = []
    window_probs = parser.window_probs
    monkeypatch.setattr(parser, "window_probs", lambda batch: seen.append(len(batch.sizes_B2)) or window_probs(batch))
    (scene,) = SceneParser(parser, None, batch_size=5).parse_found([photo], [found])
    assert seen == [5, 5, 2]
    assert len(scene.faces) == 12
    assert np.array_equal(scene.labels_HW, at_once.labels_HW)
    assert np.array_equal(scene.owners_HW, at_once.owners_HW)


def test_patches_that_touch_do_not_overlap():
    def overlap(*corners: tuple[int, int]) -> bool:
        return overlapping([Patch(*corner, torch.zeros(20, 20), torch.zeros(20, 20), None) for corner in corners])

    assert not overlap((0, 0), (0, 20), (20, 0))
    assert overlap((0, 0), (30, 30), (49, 49))


def test_corners_and_distances_of_a_turned_window_by_hand():
    theta = np.array([[[0.0, -0.5, 0.0], [0.5, 0.0, 0.0]]])  # a quarter clockwise in a photo of 9 x 9
    assert window_corners(theta, (9, 9))[0].tolist() == [[6, 2], [6, 6], [2, 6], [2, 2]]
    distance = window_distance(theta, (9, 9), 0, 0, (9, 9))
    assert distance[4, 4] == 0
    assert distance[4, 6] == 2
    assert np.isinf(distance[4, 7])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"checkpoints": []}, "checkpoints is an empty list"),
        ({"checkpoints": 5}, "checkpoints must be a file"),
        ({"checkpoints": "no.pt"}, r"no\.pt: no such"),
        ({"device": "toaster"}, "device toaster: not a device"),
        ({"device": 3}, "device 3: "),
        ({"device": "cpu", "faces": "some"}, "faces must be all or largest, not 'some'"),
        ({"device": "cpu", "labels": 3}, "labels 3: "),
    ],
)
def test_what_cannot_be_loaded_is_one_line_that_names_the_argument(arguments, line):
    with pytest.raises(InputError, match=f"^{line}"):
        load(**arguments)


def test_a_scene_as_tensors_is_the_scene_and_gradients_of_a_part_land_on_it() -> None:
    parse = load(device="cpu")
    photo = skimage.data.astronaut()[:240, 100:340]
    two = np.hstack([photo, photo[:, ::-1]])
    scene, other = parse.parse([two, photo], keep_probs=True)
    found, one = parse.parse([two, photo], tensors=True)
    assert scene.probs_KHW is not None
    np.testing.assert_array_equal(found.labels_HW, scene.labels_HW)
    np.testing.assert_array_equal(found.owners_HW, scene.owners_HW)
    np.testing.assert_allclose(found.probs_KHW, scene.probs_KHW, atol=1e-3)
    assert [face.detection.box for face in scene.faces] == [face.box for face in found.detections if face]
    np.testing.assert_array_equal(one.labels_HW, other.labels_HW)
    empty = parse(np.zeros((40, 50, 3), np.uint8), tensors=True)
    assert (empty.labels_HW.any(), len(empty.frames_F23), empty.probs_KHW[0].min()) == (False, 0, 1)

    images_B3HW = torch.from_numpy(two.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    images_B3HW.requires_grad_()
    photos_BHW3 = parse.parser.preprocess(images_B3HW, black=-1)
    probs_FKHW = parse.parser.forward_framed(photos_BHW3, found.frames_F23[:1])
    eye_HW = (scene.labels_HW == 3) & (scene.owners_HW == 1)
    probs_FKHW[0, 3][torch.from_numpy(eye_HW)].log().mean().backward()
    assert images_B3HW.grad is not None
    size_HW = images_B3HW.grad[0].abs().sum(0).numpy()
    rows, columns = np.nonzero(eye_HW)
    around = np.zeros_like(eye_HW)
    around[rows.min() - 12 : rows.max() + 13, columns.min() - 12 : columns.max() + 13] = True
    assert size_HW[around].mean() > 20 * size_HW[~around].mean()
    with pytest.raises(InputError, match="images must be float"):
        parse.parser.preprocess(images_B3HW.permute(0, 2, 3, 1))
