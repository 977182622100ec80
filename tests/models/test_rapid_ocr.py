from pathlib import Path

import cv2
import numpy as np
import pytest

from models.rapid_ocr import RapidOCR


@pytest.fixture(scope="module")
def spotter():
    return RapidOCR(RapidOCR.Config(), Path("unused"))


def share(image, regions):
    return sum(cv2.contourArea(region.corners) for region in regions) / (image.shape[0] * image.shape[1])


def test_text_covers_the_news_and_not_the_sea(spotter, frame):
    news, sea = frame("panda_rocket_news_text.mp4", 100), frame("panda_dolphins.mp4", 30)

    in_news, in_sea = spotter.spot([news, sea])

    assert 0.04 < share(news, in_news) < 0.1
    assert share(sea, in_sea) < 0.01
    headline = max(in_news, key=lambda region: cv2.contourArea(region.corners))
    x0, y0, x1, y1 = *headline.corners.min(axis=0), *headline.corners.max(axis=0)
    assert np.allclose([x0, y0, x1, y1], [146, 308, 590, 338], atol=8)


def test_one_region_per_line_of_text(spotter, frame):
    regions = spotter.spot([frame("panda_herbs_subtitle.mp4", 60)])[0]

    assert len(regions) == 2
    for region in regions:
        assert region.corners.shape == (4, 2)
        assert region.corners.dtype == np.float32
        assert 0.6 <= region.score <= 1


def test_the_network_sees_the_image_in_its_proportions_and_in_bgr(spotter):
    blob = spotter._blob(np.full((360, 640, 3), (255, 0, 0), np.uint8))

    assert blob.shape == (1, 3, 544, 960)
    assert blob[0, :, 0, 0].tolist() == [-1, -1, 1]


def test_score_belongs_to_its_region(spotter):
    image = np.full((300, 600, 3), 255, np.uint8)
    cv2.putText(image, "CLEAR TEXT", (40, 240), cv2.FONT_HERSHEY_SIMPLEX, 2.4, (0, 0, 0), 6)
    cv2.putText(image, "faint words", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (215, 215, 215), 1)

    regions = RapidOCR(RapidOCR.Config(min_score=0.2), Path("unused")).spot([image])[0]

    clear = max(regions, key=lambda region: region.corners[:, 1].mean())
    assert clear.score == max(region.score for region in regions)


def test_a_batch_gives_what_single_images_give(spotter, frame):
    images = [frame("panda_rocket_news_text.mp4", 100), frame("panda_two_men_hug_subtitle.mp4", 30)]

    together = spotter.spot(images)

    for image, regions in zip(images, together, strict=True):
        alone = spotter.spot([image])[0]
        assert [r.score for r in alone] == [r.score for r in regions]


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 40, 3), (1, 1, 3), (1, 3000, 3), (5, 7, 3)])
def test_images_without_room_hold_no_text(spotter, shape):
    assert spotter.spot([np.full(shape, 200, np.uint8)]) == [[]]


def test_prints_nothing(frame, capfd):
    RapidOCR(RapidOCR.Config(), Path("unused")).spot([frame("panda_dolphins.mp4", 30), np.zeros((8, 8, 3), np.uint8)])

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
