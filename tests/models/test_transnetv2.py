import csv
import random
import weakref
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from models.transnetv2 import TransNetV2


@pytest.fixture(scope="module")
def detector():
    return TransNetV2(TransNetV2.Config(), Path("unused"))


@pytest.fixture
def cheap_detector(monkeypatch):
    """The windows of the real detector around a network that answers with each frame's place in its window."""
    detector = TransNetV2(TransNetV2.Config(), Path("unused"))

    def predict_raw(window):
        brightness = window.float().mean(dim=(2, 3, 4))[..., None] / 255
        place = torch.arange(100)[None, :, None] / 1000
        return brightness * 0.5 + place, (brightness.roll(7, 1) + brightness.roll(-11, 1)) * 0.4

    monkeypatch.setattr(detector._network, "predict_raw", predict_raw)
    return detector


def published(detector, frames):
    heads = detector._network.predict_frames(torch.from_numpy(np.stack(frames)), quiet=True)
    return torch.maximum(*heads).detach().numpy()


def runs(probabilities, threshold=0.5):
    high = np.flatnonzero(probabilities > threshold)
    groups = np.split(high, np.flatnonzero(np.diff(high) > 1) + 1)
    return [range(int(group[0]), int(group[-1]) + 1) for group in groups if len(group)]


@pytest.mark.parametrize(
    ("name", "length", "count", "frames_each", "unlisted"),
    [
        # Not in the index: a fade from black at 240 to 251, which the frames show.
        ("sintel_30s.mp4", 390, 5, range(1, 40), range(240, 252)),
        # Dissolves, of which a single probability per cut would keep one or two frames.
        ("panda_fitness_man_multishot.mp4", 290, 3, range(7, 14), range(0)),
        ("panda_blue_pickup_multishot.mp4", 175, 2, range(1, 4), range(0)),
    ],
)
def test_finds_the_listed_cuts_and_nothing_else(detector, frames, clips, name, length, count, frames_each, unlisted):
    with (clips / "index.csv").open() as handle:
        listed = next(row["cut_frames"] for row in csv.DictReader(handle) if row["file"] == name)
    cuts = [int(cut) for cut in listed.split()][:count]
    stream = islice(frames(name, detector.frame_size), length)

    probabilities = detector.transitions(stream)

    assert probabilities.shape == (length,)
    assert probabilities.dtype == np.float32
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    found = runs(probabilities)
    assert all(any(cut in run for run in found) for cut in cuts), (cuts, found)
    at_cuts = [run for run in found if any(cut in run for cut in cuts)]
    assert all(len(run) in frames_each for run in at_cuts)
    assert [run for run in found if run not in at_cuts and not set(run) <= set(unlisted)] == []


def test_equals_the_published_prediction(detector, frames):
    images = list(frames("panda_blue_pickup_multishot.mp4", detector.frame_size))[60:110]

    np.testing.assert_allclose(detector.transitions(iter(images)), published(detector, images), atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 24, 25, 26, 49, 50, 51, 74, 75, 76, 99, 100, 101, 124, 125, 126, 150, 233])
def test_cuts_the_stream_into_the_published_windows(cheap_detector, length):
    images = list(np.random.default_rng(length).integers(0, 256, (length, 27, 48, 3), np.uint8))

    probabilities = cheap_detector.transitions(iter(images))

    assert probabilities.shape == (length,)
    np.testing.assert_allclose(probabilities, published(cheap_detector, images), atol=1e-6)


def test_no_frames_give_no_probabilities(cheap_detector):
    assert cheap_detector.transitions(iter([])).shape == (0,)


def test_holds_no_more_than_two_windows_of_a_long_stream(cheap_detector):
    alive = set()
    most = 0

    def stream():
        nonlocal most
        for number in range(5000):
            image = np.zeros((27, 48, 3), np.uint8)
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield image

    assert cheap_detector.transitions(stream()).shape == (5000,)
    assert most <= 160


@pytest.mark.parametrize("image", [np.zeros((48, 27, 3), np.uint8), np.zeros((27, 48, 3), np.float32)])
def test_refuses_other_frames(cheap_detector, image):
    with pytest.raises(ValueError, match="48x27 uint8"):
        cheap_detector.transitions([image])


def test_loading_leaves_the_process_alone():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    TransNetV2(TransNetV2.Config(), Path("unused"))

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert not torch.are_deterministic_algorithms_enabled()
