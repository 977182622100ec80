import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from models import nudenet
from models.nudenet import PARTS, NudeNet, body_parts
from models.pretrained import UnusableWeightsError
from models.registry import MissingWeightsError, backend_config, build, fingerprint

packaged = pytest.mark.skipif(find_spec("nudenet") is None, reason="the package nudenet is not installed")
SIZE = (320.0, 320.0)


def output(*found, candidates=40):
    """A network's output of ``(x, y, width, height, {class: score})``."""
    rows = np.zeros((22, candidates), np.float32)
    for place, (x, y, width, height, scores) in enumerate(found):
        rows[:4, place] = x, y, width, height
        for part, score in scores.items():
            rows[4 + PARTS.index(part), place] = score
    return rows


class Session:
    """Puts the same out for every picture, and keeps what it was given."""

    def __init__(self, found):
        self.found, self.given = found, []

    def run(self, names, inputs):
        self.given.append(inputs["images"])
        return [self.found[None]]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    pytest.importorskip("nudenet")
    return build("safety", NudeNet.Config(), tmp_path_factory.mktemp("none"))


def write_network(file, rows=22, scores=None):
    """A network in ONNX that puts the same out for every picture: one box in the middle."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    found = np.zeros((1, rows, 3), np.float32)
    found[0, :4] = np.array([[16, 16, 8, 8]]).T
    for row, score in (scores or {}).items():
        found[0, 4 + row, 0] = score
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])
    boxes = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, rows, 3])
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "found"], ["output0"]),
    ]
    graph = helper.make_graph(nodes, "fixed", [picture], [boxes], [numpy_helper.from_array(found, "found")])
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))


def test_a_box_is_of_its_best_class_alone():
    found = output((50, 50, 20, 20, {"FEMALE_BREAST_EXPOSED": 0.6, "FEMALE_BREAST_COVERED": 0.7}))

    assert body_parts(found, SIZE) == [("FEMALE_BREAST_COVERED", pytest.approx(0.7))]


def test_of_boxes_in_one_place_the_surest_stays_whatever_it_is():
    exposed = (50, 50, 20, 20, {"FEMALE_BREAST_EXPOSED": 0.6})
    covered = (51, 50, 20, 20, {"FEMALE_BREAST_COVERED": 0.8})
    apart = (200, 50, 20, 20, {"ANUS_EXPOSED": 0.5})

    assert body_parts(output(exposed, covered, apart), SIZE) == [
        ("FEMALE_BREAST_COVERED", pytest.approx(0.8)),
        ("ANUS_EXPOSED", pytest.approx(0.5)),
    ]


@pytest.mark.parametrize(("score", "count"), [(0.25, 0), (0.26, 1), (1.0, 1)])
def test_boxes_of_a_quarter_or_less_are_none(score, count):
    assert len(body_parts(output((50, 50, 20, 20, {"FACE_MALE": score})), SIZE)) == count


def test_an_output_without_boxes_or_candidates_is_nothing():
    assert body_parts(output(), SIZE) == []
    assert body_parts(output(candidates=0), SIZE) == []


def test_boxes_end_where_the_picture_does():
    # Outside the picture they would hardly overlap; what is inside of both is the same.
    wide = (100, 150, 20, 100, {"BUTTOCKS_EXPOSED": 0.9})
    narrow = (100, 110, 20, 20, {"BUTTOCKS_EXPOSED": 0.5})

    assert len(body_parts(output(wide, narrow), SIZE)) == 2
    assert len(body_parts(output(wide, narrow), (320.0, 120.0))) == 1


def test_the_score_is_that_of_the_surest_part_that_counts(scorer, monkeypatch):
    found = output(
        (50, 50, 20, 20, {"FACE_FEMALE": 0.9}),
        (100, 50, 20, 20, {"FEMALE_BREAST_EXPOSED": 0.4}),
        (150, 50, 20, 20, {"BUTTOCKS_EXPOSED": 0.7}),
        (200, 50, 20, 20, {"MALE_BREAST_EXPOSED": 0.8}),
    )
    monkeypatch.setattr(scorer, "_session", Session(found))
    picture = np.zeros((100, 100, 3), np.uint8)

    assert scorer.nudity([picture]) == [pytest.approx(0.7)]
    monkeypatch.setattr(scorer, "_counts", ("MALE_BREAST_EXPOSED",))
    assert scorer.nudity([picture]) == [pytest.approx(0.8)]
    monkeypatch.setattr(scorer, "_counts", ("ANUS_EXPOSED",))
    assert scorer.nudity([picture]) == [0.0]


def test_pictures_are_red_green_blue_in_a_corner(scorer, monkeypatch):
    session = Session(output())
    monkeypatch.setattr(scorer, "_session", session)

    scorer.nudity([np.full((160, 640, 3), (255, 0, 51), np.uint8)])

    (given,) = session.given
    assert given.shape == (1, 3, 320, 320)
    assert np.allclose(given[0, :, 40, 300], (1, 0, 0.2), atol=1e-6)
    assert not given[0, :, 81:].any()


def test_people_in_their_clothes_are_not_nude(scorer, frame):
    images = [frame("koala_two_men.mp4", 60), frame("asl_personB_book.mkv", 5), frame("davis_bear.mp4", 40)]

    assert scorer.nudity(images) == [0.0, 0.0, 0.0]


def test_it_finds_what_the_package_s_own_detector_finds(scorer, frame):
    from nudenet import NudeDetector

    detector = NudeDetector()
    for name, index in (("koala_two_men.mp4", 60), ("dj_two_youths_480x360.mp4", 30), ("lp_woman_face.mp4", 100)):
        image = frame(name, index)
        # The detector swaps the colours of an array as often as the network wants them.
        expected = [(each["class"], pytest.approx(each["score"], abs=1e-4)) for each in detector.detect(image)]
        assert expected
        blob = nudenet._blob(image, 320)
        scale = 320 / max(image.shape[:2])
        found = scorer._session.run(None, {"images": blob})[0][0]
        assert body_parts(found, (image.shape[1] * scale, image.shape[0] * scale)) == expected


def test_order_is_kept_and_pictures_without_pixels_show_nothing(scorer, frame, monkeypatch):
    monkeypatch.setattr(scorer, "_counts", ("FACE_MALE", "FACE_FEMALE"))
    face, bear = frame("asl_personB_book.mkv", 5), frame("davis_bear.mp4", 40)

    first, empty, second, third = scorer.nudity([bear, np.zeros((0, 10, 3), np.uint8), face, bear])

    assert (first, empty, third) == (0.0, 0.0, 0.0)
    assert second > 0.5
    assert scorer.nudity([]) == []


def test_tiny_pictures_are_scored(scorer):
    assert scorer.nudity([np.zeros((1, 1, 3), np.uint8), np.zeros((1, 900, 3), np.uint8)]) == [0.0, 0.0]


def test_a_network_of_one_s_own_is_read(tmp_path):
    write_network(tmp_path / "mine" / "larger.onnx", scores={PARTS.index("ANUS_EXPOSED"): 0.75})
    config = backend_config("safety", {"backend": "nudenet", "network": "mine/larger.onnx", "side": 32})

    assert config.packages == ()
    assert config.weights(tmp_path) == [tmp_path / "mine" / "larger.onnx"]
    white = np.full((64, 48, 3), 255, np.uint8)
    assert build("safety", config, tmp_path).nudity([white]) == [pytest.approx(0.75)]


def test_a_network_of_other_classes_is_refused(tmp_path):
    write_network(tmp_path / "coco.onnx", rows=84)
    config = NudeNet.Config(network="coco.onnx", side=32)

    with pytest.raises(UnusableWeightsError, match="84 rows"):
        build("safety", config, tmp_path)


def test_without_the_package_its_network_may_lie_under_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr(nudenet, "_packaged", lambda: None)
    config = NudeNet.Config(side=32)

    with pytest.raises(MissingWeightsError, match=r"nudenet/320n\.onnx does not exist"):
        build("safety", config, tmp_path)
    write_network(tmp_path / "nudenet" / "320n.onnx")
    assert build("safety", config, tmp_path).nudity([np.zeros((9, 9, 3), np.uint8)]) == [0.0]


@packaged
def test_the_package_counts_by_its_version_and_is_not_imported(monkeypatch):
    config = NudeNet.Config()
    assert config.packages == ("nudenet",)
    assert config.weights(Path("root")) == []
    before = fingerprint(config, Path("root"))

    monkeypatch.setattr("models.registry.version", lambda package: "0")
    assert fingerprint(config, Path("root")) != before
    monkeypatch.delitem(sys.modules, "nudenet", raising=False)
    build("safety", config, Path("root"))
    assert "nudenet" not in sys.modules


def test_classes_that_the_network_does_not_have_are_refused():
    with pytest.raises(ValueError, match="counts"):
        backend_config("safety", {"backend": "nudenet", "counts": ["KNEE_EXPOSED"]})
    with pytest.raises(ValueError, match="side"):
        backend_config("safety", {"backend": "nudenet", "side": 321})


def test_colours_matter_as_the_network_was_trained_on_them(scorer, frame):
    image = frame("asl_personA_help.mkv", 30)
    scores = []
    for picture in (image, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        found = scorer._session.run(None, {"images": nudenet._blob(picture, 320)})[0][0]
        scores.append(max(score for part, score in body_parts(found, SIZE) if part.startswith("FACE")))

    assert scores[0] > scores[1] + 0.1
