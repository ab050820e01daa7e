"""The cache is whole after every mishap; batches hold what the files do, in an order of their own, some photos soft."""

import gc
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from data import listing
from data.camera import degraded, is_degraded
from data.images import make_image_256
from data.labels import CELEBAMASK, HELEN, NINE
from data.loaders import Faces, evaluation_batches, open_faces, training_batches
from data.source import FaceData, open_source
from tests.damage import flipped, little_room, refuses
from tests.fixtures import draw_face, draw_faces, write_helen
from utils import locks
from utils.errors import InputError
from utils.runtime import Machine, explain

COUNT = 6
NAMES = [f"face{k}" for k in range(COUNT)]
SIZES = ((64, 64), (48, 80), (80, 48), (64, 64), (64, 96), (72, 64))
CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path) -> Path:
    """Six block faces of several sizes, in HELEN's layout."""
    faces = [(name, *draw_face(*size, dx=k % 3)) for k, (name, size) in enumerate(zip(NAMES, SIZES, strict=True))]
    for name in ("eye1", "inner_mouth"):  # a part, and a label of one, that are not there
        faces[-1][2][faces[-1][2] == HELEN.names.index(name)] = 0
    write_helen(tmp_path / "helen", {"train": faces, "val": draw_faces()["val"]})
    return tmp_path / "helen"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the faces that are decoded, in order."""
    names: list[str] = []
    read_photo = listing.images.read_photo
    monkeypatch.setattr(listing.images, "read_photo", lambda path: names.append(path.stem) or read_photo(path))
    return names


def data_of(root: Path, max_images: int | None = None, face_size: int | None = None) -> FaceData:
    return FaceData("helen", root, face_size=face_size, max_images=max_images, cache=root.parent / "cache")


def open_train(root: Path, max_images: int | None = None, **more: Any) -> Faces:
    return open_faces(data_of(root, max_images, **more), "train", NINE, threads=1)


def geometry_of(labels_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the six parts are in a nine-label map, worked out plainly: (present, centre, extent)."""
    present, centre, extent = np.zeros(6, bool), np.zeros((6, 2), np.float32), np.zeros((6, 2), np.float32)
    for part, ids in enumerate(NINE.part_ids):
        ys, xs = np.nonzero(np.isin(labels_HW, ids))
        if len(xs):
            present[part], centre[part], extent[part] = True, (xs.mean(), ys.mean()), (np.ptp(xs) + 1, np.ptp(ys) + 1)
    return present, centre, extent


def assert_holds_the_files(faces: Faces, root: Path) -> None:
    source, merge = open_source(data_of(root), "train"), HELEN.map_to(NINE)
    assert faces.names == [sample.name for sample in source.samples]
    for k, sample in enumerate(source.samples):
        photo, labels = source.read(sample)
        held = [faces.photo(k), faces.image_256(k), faces.ids(k), faces.label_map(k)]
        files = [photo, make_image_256(photo), labels, merge[labels], *geometry_of(merge[labels])]
        for one, other in zip([*held, *(part[k] for part in faces.parts())], files, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("file", "change", "again"),
    [
        ("records.bin", lambda content: content[: len(content) * 2 // 5], 4),  # a record half written
        ("photos.bin", lambda content: content + bytes(4000), 0),  # a photo half written, its record not yet
        ("labels.bin", lambda content: content[: len(content) // 12], 6),  # less than the records vouch for
        ("images_256.bin", lambda content: content[:-9], 1),
        ("records.bin", lambda content: flipped(content, len(content) // 2 + 40), 3),  # how many pixels a label has
    ],
)
def test_an_interrupted_or_damaged_cache_is_decoded_from_there_on(file, change, again, root, reads):
    path = open_train(root).folder / file
    path.write_bytes(change(path.read_bytes()))
    reads.clear()
    faces = open_train(root)
    assert len(reads) == again
    assert_holds_the_files(faces, root)


@pytest.fixture
def failing_loaders(monkeypatch) -> Iterator[None]:
    """Loaders that failed, which their traceback holds, are collected here, and do not wait for their processes."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


@pytest.mark.usefixtures("failing_loaders")
@pytest.mark.parametrize(("file", "workers"), [("photos.bin", 0), ("labels.bin", 1), ("images_256.bin", 0)])
def test_a_face_that_was_damaged_on_the_disk_is_reported_in_one_line(file, workers, root):
    faces = open_train(root)
    (faces.folder / file).write_bytes(flipped((faces.folder / file).read_bytes(), 100))
    with pytest.raises(InputError, match=r"^the cache \S+ is damaged at face0: remove the folder$"):
        list(evaluation_batches(faces, 2, machine=Machine(CPU, workers)))


def test_a_second_process_says_that_it_waits_for_the_cache(root, monkeypatch):
    messages: Queue[str] = Queue()
    folder = open_train(root).folder
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    monkeypatch.setattr(locks, "print", lambda text, **_: messages.put(text), raising=False)
    waiting = threading.Thread(target=open_train, args=(root,))
    with FileLock(folder / "lock"):
        waiting.start()
        message = messages.get(timeout=60)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()
    assert message == f"the cache {folder} is in use by another process: waiting until it ends"


def no_room(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm)")


@pytest.mark.usefixtures("failing_loaders")
@pytest.mark.parametrize(
    ("owner", "name", "fail", "line"),
    [
        (torch.Tensor, "share_memory_", no_room, "/dev/shm is too small .*--shm-size=8g"),
        (Faces, "collate", lambda *_: os.kill(os.getpid(), 9), "loads faces was killed, .* take fewer --workers"),
    ],
)
def test_a_loading_process_that_fails_is_reported_in_one_line(owner, name, fail, line, root, monkeypatch):
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(RuntimeError) as caught:
        list(evaluation_batches(open_train(root), 2, machine=Machine(CPU, 1)))
    assert re.search(line, explain(caught.value))


def test_the_fingerprint_is_that_of_the_faces_wherever_they_lie(root, tmp_path):
    whole, few = open_train(root).fingerprint, open_train(root, 3).fingerprint
    copy = shutil.copytree(root, tmp_path / "copy" / "helen")
    assert re.fullmatch("[0-9a-f]{64}", whole)
    assert open_train(copy).fingerprint == open_train(root).fingerprint == whole
    assert open_faces(data_of(root), "train", HELEN).fingerprint == whole
    assert open_train(copy, 3).fingerprint == few
    others = {whole, few, open_train(root, face_size=32).fingerprint}
    photo, labels = draw_face(64, 64, dx=1)  # face3 is at 0
    Image.fromarray(photo).save(root / "images" / "face3.jpg", quality=95)
    others.add(open_train(root).fingerprint)
    mask = np.where(labels == 6, 200, 20).astype(np.uint8)
    Image.fromarray(mask).save(root / "labels" / "face3" / "face3_lbl06.png")
    others.add(open_train(root).fingerprint)
    (root / "exemplars.txt").write_text("\n".join((root / "exemplars.txt").read_text().splitlines()[::-1]))
    others.add(open_train(root).fingerprint)
    assert len(others) == 6


def test_the_cache_is_built_again_from_the_first_file_that_changes_on(root, reads):
    open_train(root)
    Image.fromarray(255 - draw_face(48, 80)[0]).save(root / "images" / "face1.jpg", quality=95)
    reads.clear()
    faces = open_train(root)
    assert sorted(reads) == NAMES[1:]
    assert_holds_the_files(faces, root)
    before = [faces.photo(k) for k in range(COUNT)]
    write_helen(root.parent / "other", {"train": [(name, *draw_face(40)) for name in NAMES]})
    root.rename(root.parent / "old")
    (root.parent / "other").rename(root)
    assert open_train(root).photo(0).shape == (40, 40, 3)
    for k, photo in enumerate(before):
        np.testing.assert_array_equal(faces.photo(k), photo)  # those that were open can still be read


def test_a_full_disk_is_reported_in_one_line_and_the_cache_goes_on_later(root, reads):
    room = 2 * 256 * 256 * 3 + 1000  # two stretched photos and a bit
    with little_room(room), refuses("cache", "could not be written", "another folder"):
        open_train(root)
    reads.clear()
    faces = open_train(root)
    assert len(reads) == COUNT - 2
    assert_holds_the_files(faces, root)


def test_one_cache_serves_every_number_of_faces_and_every_label_set_and_decodes_each_once(root, reads):
    few = open_train(root, 2)
    assert few.names == sorted(reads) == ["face0", "face1"]
    reads.clear()
    more = open_train(root, 4)
    assert sorted(reads) == ["face2", "face3"]
    whole = open_train(root)
    assert sorted(reads) == NAMES[2:]
    reads.clear()
    before = len(os.listdir("/proc/self/fd"))
    assert [len(open_train(root, count)) for count in (1, 3, COUNT, 99)] == [1, 3, COUNT, COUNT]
    assert len(os.listdir("/proc/self/fd")) <= before  # what nobody holds keeps no file open
    all_11 = open_faces(data_of(root), "train", HELEN)
    assert not reads
    assert few.folder == more.folder == whole.folder == all_11.folder
    np.testing.assert_array_equal(HELEN.map_to(NINE)[all_11.label_map(1)], whole.label_map(1))
    assert all_11.count_labelled() > whole.count_labelled() > 0
    np.testing.assert_array_equal(few.photo(1), whole.photo(1))  # opened before the others were appended
    assert_holds_the_files(whole, root)


def test_labels_that_the_data_cannot_tell_are_refused_before_anything_is_decoded(root, reads):
    with refuses("label set helen has no separate eye_g, ", " which label set celebamask needs"):
        open_faces(data_of(root), "train", CELEBAMASK)
    assert not reads
    assert not (root.parent / "cache").exists()


def test_photos_of_different_sizes_are_padded_at_the_right_and_bottom(root):
    faces = open_train(root)
    (batch,) = evaluation_batches(faces, COUNT)
    assert batch.photos_BHW3.shape == (COUNT, 80, 96, 3)
    assert batch.sizes_B2.tolist() == [list(size) for size in SIZES]
    for b, (height, width) in enumerate(batch.sizes_B2.tolist()):
        np.testing.assert_array_equal(batch.photos_BHW3[b, :height, :width], faces.photo(b))
        np.testing.assert_array_equal(batch.labels_BHW[b, :height, :width], faces.label_map(b))
        for padded in (batch.photos_BHW3[b], batch.labels_BHW[b]):
            assert not padded[height:].any()
            assert not padded[:, width:].any()
    assert batch.present_BP.sum(1).tolist() == [6, 6, 6, 6, 6, 5]
    np.testing.assert_array_equal(batch.centres_BP2, faces.parts()[1])


def order_of(faces: Faces, batch_size: int, seed: int, epoch: int, folds: int = 1, **where: Any) -> torch.Tensor:
    """(N, 4): index and key of each face of an epoch, in order."""
    batches = training_batches(faces, batch_size, seed, epoch, folds, **where)
    return torch.cat([torch.cat([batch.index_B[:, None], batch.keys_B3], 1) for batch in batches])


def test_batches_without_photos_hold_all_the_rest(root):
    whole = open_faces(data_of(root), "train", NINE)
    bare = open_faces(data_of(root), "train", NINE, photos=False)
    for full, empty in zip(evaluation_batches(whole, 4), evaluation_batches(bare, 4), strict=True):
        assert empty.photos_BHW3.numel() == 0
        for name, value in vars(full).items():
            other = getattr(empty, name)
            assert name in ("photos_BHW3", "labels") or (other is None if value is None else torch.equal(other, value))


def test_faces_are_resized_to_the_size_asked_for_labels_by_the_nearest_pixel(root):
    whole, small = open_train(root), open_train(root, face_size=32)
    assert small.photo(1).shape == (19, 32, 3)
    assert small.photo(2).shape == (32, 19, 3)
    for k in (0, 3):  # 64 x 64: every second pixel
        np.testing.assert_array_equal(small.label_map(k), whole.label_map(k)[1::2, 1::2])
        blocks = whole.photo(k).reshape(32, 2, 32, 2, 3).mean((1, 3))
        np.testing.assert_allclose(small.photo(k), blocks, rtol=0, atol=1)


def test_the_order_depends_on_seed_and_epoch_alone(root):
    faces = open_train(root)
    first = order_of(faces, 2, 0, 0)
    torch.manual_seed(99)
    for seed, epoch in ((0, 1), (0, 0)):  # the same processes for both
        loaded = order_of(faces, 2, seed, epoch, machine=Machine(CPU, 2))
    assert torch.equal(first, loaded)
    assert torch.equal(first, order_of(faces, 3, 0, 0))
    assert not torch.equal(first[:, 0], order_of(faces, 2, 0, 1)[:, 0])
    assert not torch.equal(first[:, 0], order_of(faces, 2, 1, 0)[:, 0])
    assert sorted(first[:, 0].tolist()) == list(range(COUNT))


def test_the_processes_of_a_loader_end_with_the_faces_that_nobody_holds_any_more(root):
    faces = open_train(root)
    order_of(faces, 2, 0, 0, machine=Machine(CPU, 2))
    processes = faces.loader._iterator._workers
    del faces  # no cycle: nothing waits for the garbage collector, which would leave the processes waiting
    assert [process.exitcode for process in processes] == [0, 0]


def test_every_face_comes_with_all_five_folds_in_an_epoch(root):
    order = order_of(open_train(root), 3, 4, 2, folds=5)
    assert order[:, 1].tolist() == [4] * 30
    assert order[:, 2].tolist() == [2] * 30
    assert Counter((index, key % 5) for index, _, _, key in order.tolist()) == {
        (index, fold): 1 for index in range(COUNT) for fold in range(5)
    }
    assert len(set(order[:, 3].tolist())) == 30


def test_processes_share_each_global_batch_in_training_and_all_faces_in_evaluation(root):
    faces = open_train(root)
    alone = order_of(faces, 4, 0, 0, folds=5).reshape(-1, 4, 4)
    shares = [order_of(faces, 4, 0, 0, folds=5, rank=rank, world=2).reshape(-1, 2, 4) for rank in range(2)]
    assert torch.equal(torch.cat(shares, 1), alone)
    for world in (1, 2, 7):
        batches = [batch for rank in range(world) for batch in evaluation_batches(faces, 4, rank, world)]
        assert torch.cat([batch.index_B for batch in batches]).sort().values.tolist() == list(range(COUNT))


def test_the_last_incomplete_batch_is_left_out_and_one_larger_than_an_epoch_refused(root):
    faces = open_train(root)
    assert len(order_of(faces, 4, 0, 0)) == 4
    assert len(order_of(faces, 7, 0, 0, folds=5)) == 28
    with refuses("batch size 7 is larger than the 6 faces"):
        training_batches(faces, 7, 0, 0)


def detail(photo: np.ndarray) -> float:
    return float(np.abs(np.diff(photo.astype(float), axis=1)).mean())


def test_a_degraded_photo_follows_from_its_key_keeps_its_size_and_loses_detail():
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    shown = [degraded(photo, (0, 0, k)) for k in range(40)]
    assert np.array_equal(shown[3], degraded(photo, (0, 0, 3)))
    assert {one.shape for one in shown} == {photo.shape}
    assert {one.dtype for one in shown} == {photo.dtype}
    assert all(detail(one) < detail(photo) for one in shown)
    assert 0.4 < np.mean([is_degraded((0, 0, k), 0.5) for k in range(400)]) < 0.6
    assert not any(is_degraded((0, 0, k), 0.0) for k in range(40))


def test_photo_and_small_image_of_a_face_are_degraded_alike_and_its_labels_stay(tmp_path):
    data = FaceData("synthetic", None, None, 64, 8, tmp_path, None, None)
    clean = next(iter(training_batches(open_faces(data, "train", NINE), 8, 0, 0)))
    soft = next(iter(training_batches(open_faces(data, "train", NINE, camera=0.5), 8, 0, 0)))
    changed = (soft.photos_BHW3 != clean.photos_BHW3).flatten(1).any(1)
    expected = [is_degraded(tuple(key), 0.5) for key in clean.keys_B3.tolist()]
    assert changed.tolist() == expected
    assert 0 < sum(expected) < 8
    for photo, image_256 in zip(soft.photos_BHW3, soft.images_256_BSS3, strict=True):
        assert np.array_equal(make_image_256(photo.numpy()), image_256)
    assert torch.equal(soft.labels_BHW, clean.labels_BHW)
