from itertools import combinations

import numpy as np
import pytest

from models.insight_face import InsightFace
from models.registry import MissingWeightsError, build

PEOPLE = {
    "A": ["again", "brother", "help", "no", "student", "yes"],
    "B": ["book", "learn", "school", "walk"],
    "C": ["bird", "milk", "please", "sorry", "thanks"],
}


@pytest.fixture(scope="module")
def analyser(weights):
    return build("faces", InsightFace.Config(), weights)


def test_one_person_is_alike_and_two_are_not(analyser, frame):
    # At frame 5 nobody holds a hand before the face yet.
    signers = [(person, sign) for person, signs in PEOPLE.items() for sign in signs]
    found = analyser.faces([frame(f"asl_person{person}_{sign}.mkv", 5) for person, sign in signers])
    assert [len(faces) for faces in found] == [1] * len(signers)

    pairs = combinations(zip([person for person, _ in signers], found, strict=True), 2)
    cosines = [(one == other, float(a[0].embedding @ b[0].embedding)) for (one, a), (other, b) in pairs]

    assert min(cosine for same, cosine in cosines if same) > 0.65
    assert max(cosine for same, cosine in cosines if not same) < 0.55


def test_a_face_that_fills_the_frame_is_found(analyser, weights, frame):
    close_up = frame("lp_woman_face.mp4", 100)

    faces = analyser.faces([close_up])[0]

    assert len(faces) == 1
    assert np.allclose(faces[0].box, (121, 117, 408, 490), atol=12)
    left_eye, right_eye, nose, *_ = faces[0].landmarks
    assert np.allclose(left_eye, (192, 275), atol=15)
    assert np.allclose(right_eye, (322, 273), atol=15)
    assert np.allclose(nose, (255, 350), atol=20)
    assert build("faces", InsightFace.Config(border=0), weights).faces([close_up]) == [[]]


def test_two_men_have_two_faces_and_a_bear_none(analyser, frame):
    men, bear = analyser.faces([frame("koala_two_men.mp4", 60), frame("davis_bear.mp4", 40)])

    assert bear == []
    assert [face.score for face in men] == sorted((face.score for face in men), reverse=True)
    assert np.allclose(sorted(face.box[0] for face in men), [463, 841], atol=10)
    for face in men:
        assert 0.5 <= face.score <= 1
        assert face.landmarks.shape == (5, 2)
        assert face.embedding.dtype == np.float32
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    assert float(men[0].embedding @ men[1].embedding) < 0.55


def test_min_score_decides(weights, frame):
    image = frame("koala_two_men.mp4", 60)

    assert build("faces", InsightFace.Config(min_score=0.99), weights).faces([image]) == [[]]


def test_colours_are_red_green_blue(analyser, frame):
    image = frame("koala_two_men.mp4", 60)

    right, swapped = analyser.faces([image, np.ascontiguousarray(image[:, :, ::-1])])

    assert right[0].score > swapped[0].score


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 40, 3), (1, 1, 3), (16, 3000, 3), (64, 64, 3)])
def test_images_without_room_hold_no_face(analyser, shape):
    assert analyser.faces([np.zeros(shape, np.uint8)]) == [[]]


def test_prints_nothing(weights, frame, capfd, recwarn):
    build("faces", InsightFace.Config(), weights).faces([frame("koala_two_men.mp4", 60)])

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert not recwarn.list


def test_a_missing_pack_is_named_and_not_downloaded(tmp_path):
    with pytest.raises(MissingWeightsError, match="tiny"):
        InsightFace(InsightFace.Config(), tmp_path)
    assert list(tmp_path.iterdir()) == []
