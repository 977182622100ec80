import numpy as np
import pytest

from models.protocols import Keyframe
from models.registry import MissingWeightsError, build
from models.vocabulary import VOCABULARY
from models.yolox import COCO, Yolox, word_of_class


@pytest.fixture(scope="module")
def detector(weights):
    return build("detector", Yolox.Config(), weights)


def iou(a, b):
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = max(0, x1 - x0) * max(0, y1 - y0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# Boxes drawn by hand on the frames.
SEEN = [
    ("davis_bear.mp4", 40, ["bear"], "bear", (98, 228, 478, 468)),
    ("koala_car_road.mp4", 50, ["car"], "car", (390, 188, 486, 256)),
    ("koala_echidna.mp4", 140, ["echidna"], "echidna", (0, 60, 755, 560)),
    ("panda_man_walks_dog_snow.mp4", 50, ["man", "dog"], "man", (261, 84, 346, 290)),
    ("panda_blue_pickup_multishot.mp4", 40, ["truck"], "truck", (75, 62, 592, 318)),
    ("panda_man_porsche.mp4", 90, ["man", "car"], "man", (455, 0, 640, 360)),
    ("panda_man_porsche.mp4", 90, ["man", "car"], "car", (165, 122, 465, 345)),
    ("sam2_juggle.mp4", 100, ["man"], "man", (635, 56, 838, 676)),
    ("opens2v_three_women_badmeta.mp4", 40, ["woman"], "woman", (280, 90, 920, 720)),
]


@pytest.mark.parametrize(("name", "index", "words", "word", "box"), SEEN)
def test_finds_what_the_frame_shows(detector, keyframe, name, index, words, word, box):
    found = detector.detect([[keyframe(name, index)]], [words])[0][0]

    assert {detection.word for detection in found} <= set(words)
    best = next(detection for detection in found if detection.word == word)
    assert iou(best.box, box) > 0.75
    assert 0.3 <= best.score <= 1


def test_finds_only_what_is_asked_for(detector, keyframe):
    bear = keyframe("davis_bear.mp4", 40)

    assert detector.detect([[bear], [bear], [bear]], [["dog"], ["woman", "car"], ["xylophonist"]]) == [[[]], [[]], [[]]]


def test_an_empty_word_list_asks_for_everything(detector, keyframe):
    found = detector.detect([[keyframe("panda_man_porsche.mp4", 90)]], [[]])[0][0]

    assert {"person", "car", "cup"} <= {detection.word for detection in found}
    assert all(detection.word in VOCABULARY for detection in found)


def test_a_batch_gives_what_single_frames_give(detector, keyframe):
    clips = [
        [keyframe("panda_man_porsche.mp4", 90), keyframe("panda_man_porsche.mp4", 20)],
        [],
        [keyframe("davis_bear.mp4", 40)],
    ]
    words = [["man", "car"], ["cat"], ["bear"]]

    together = detector.detect(clips, words)

    assert [len(found) for found in together] == [2, 0, 1]
    for keyframes, asked, found in zip(clips, words, together, strict=True):
        assert [detector.detect([[k]], [asked])[0][0] for k in keyframes] == found


def test_boxes_lie_in_the_image_best_first_and_apart(detector, keyframe):
    found = detector.detect([[keyframe("panda_man_porsche.mp4", 90)]], [["man"]])[0][0]

    scores = [detection.score for detection in found]
    assert len(found) >= 4
    assert scores == sorted(scores, reverse=True)
    for detection in found:
        x0, y0, x1, y1 = detection.box
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 360
    assert all(iou(a.box, b.box) <= 0.45 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize(
    ("name", "top", "left", "edges"),
    [
        ("koala_two_men.mp4", 72, 640, {0: 0.0, 1: 0.0}),
        ("panda_man_porsche.mp4", 72, 320, {1: 0.0, 3: 288.0}),
        ("koala_woman_eating.mp4", 0, 0, {2: 1280.0}),
    ],
)
def test_a_box_that_leaves_the_image_ends_at_its_edge(detector, frame, name, top, left, edges):
    index = 90 if name == "panda_man_porsche.mp4" else 60
    image = np.ascontiguousarray(frame(name, index)[top:, left:])

    boxes = [found.box for found in detector.detect([[Keyframe(0.0, image, image)]], [[]])[0][0]]

    assert any(all(box[side] == edge for side, edge in edges.items()) for box in boxes), boxes


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (1, 3000), (3, 2)])
def test_images_without_room_hold_nothing(detector, blank_keyframe, size):
    assert detector.detect([[blank_keyframe(*size)]], [[]]) == [[[]]]


def classes(words):
    return {COCO[index]: word for index, word in word_of_class(words).items()}


def test_a_word_that_coco_knows_takes_its_own_class_only():
    assert classes(["dog"]) == {"dog": "dog"}
    assert classes(["puppy"]) == {"dog": "puppy"}
    assert classes(["woman", "truck"]) == {"person": "woman", "truck": "truck"}


def test_a_word_that_coco_does_not_know_takes_its_category():
    echidna = classes(["echidna"])

    assert set(echidna) == {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}
    assert set(echidna.values()) == {"echidna"}


def test_a_word_that_is_only_spelled_like_a_class_does_not_take_it():
    assert VOCABULARY["mouse"].category == "animal"
    assert "mouse" not in classes(["mouse"])
    assert classes(["mouse"])["bear"] == "mouse"


def test_the_nearer_word_wins_a_class_in_any_order():
    for words in (["echidna", "puppy", "dog"], ["dog", "puppy", "echidna"]):
        won = classes(words)
        assert won["dog"] == "dog"
        assert won["bear"] == "echidna"
    assert classes(["echidna", "puppy"])["dog"] == "puppy"


def test_between_equals_the_first_word_wins():
    assert classes(["woman", "man"]) == {"person": "woman"}


def test_words_beyond_the_open_categories_take_nothing():
    unknown = [word.name for word in VOCABULARY.values() if word.coco is None and word.category in ("plant", "object")]

    assert unknown
    assert word_of_class(unknown) == {}
    assert word_of_class(["no such word"]) == {}


def test_everything_goes_by_its_vocabulary_name():
    known = classes([])

    assert known["person"] == "person"
    assert all(word in VOCABULARY for word in known.values())
    assert all(name == word or VOCABULARY[word].coco == name for name, word in known.items())
    assert len(known) > 60


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"yolox_nano\.onnx"):
        build("detector", Yolox.Config(), tmp_path)


def test_one_word_list_per_clip(detector, blank_keyframe):
    with pytest.raises(ValueError, match="zip"):
        detector.detect([[blank_keyframe(32, 32)]], [])


def test_4k_and_downscaled_frames_agree(detector, keyframe):
    found = detector.detect([[keyframe("fv_motorcycle_4k.mp4", 50)]], [["motorcycle"]])[0][0]

    assert any(iou(detection.box, (1330, 1350, 2880, 2160)) > 0.7 for detection in found)
    assert np.max([detection.box for detection in found]) > 2000
