import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from models.insight_face import InsightFace
from models.registry import MissingWeightsError, Repository, build

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


def test_an_empty_pack_is_named(tmp_path):
    (tmp_path / "insightface" / "models" / "tiny").mkdir(parents=True)

    with pytest.raises(MissingWeightsError, match=r"tiny holds no \.onnx file"):
        build("faces", InsightFace.Config(), tmp_path)


def turned(pitch, yaw, roll):
    """The rotation whose angles those are, as the package takes them apart."""
    (cx, cy, cz), (sx, sy, sz) = (f(np.deg2rad([pitch, yaw, roll])) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def write_landmarks(file, rotation):
    """A network in ONNX that sees the 68 landmarks of a mean face, turned, in every picture."""
    import onnx
    from insightface.data import get_object
    from onnx import TensorProto, helper, numpy_helper

    mean = get_object("meanshape_68.pkl")
    points = np.zeros((1103, 3))
    points[-68:] = (mean - mean.mean(axis=0)) @ rotation.T / np.abs(mean).max() / 2
    picture = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["None", 3, 192, 192])
    found = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3309])
    nodes = [
        helper.make_node("ReduceMin", ["data"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "points"], ["fc1"]),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((1, 1), np.float32), "none"),
        numpy_helper.from_array(points.reshape(1, -1).astype(np.float32), "points"),
    ]
    graph = helper.make_graph(nodes, "landmarks", [picture], [found], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))


@pytest.fixture
def pack(weights, tmp_path):
    """The tiny pack, to be added to."""
    return Path(shutil.copytree(weights / "insightface" / "models" / "tiny", tmp_path / "insightface/models/tiny"))


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, 0, 0), (0, -35, 0), (0, 0, 15), (-10, 40, 5)])
def test_a_pack_with_landmarks_in_space_tells_the_pose(pack, tmp_path, frame, angles):
    write_landmarks(pack / "1k3d68.onnx", turned(*angles))

    faces = build("faces", InsightFace.Config(), tmp_path).faces([frame("koala_two_men.mp4", 60)])[0]

    assert len(faces) == 2
    for face in faces:
        assert face.pose == pytest.approx(angles, abs=0.1)
        assert all(type(angle) is float for angle in face.pose)


def test_a_pack_without_landmarks_in_space_tells_no_pose(analyser, frame):
    assert [face.pose for face in analyser.faces([frame("koala_two_men.mp4", 60)])[0]] == [None, None]


def test_a_face_found_with_the_border_has_its_pose_too(pack, tmp_path, frame):
    write_landmarks(pack / "1k3d68.onnx", turned(0, 25, 0))

    (face,) = build("faces", InsightFace.Config(), tmp_path).faces([frame("lp_woman_face.mp4", 100)])[0]

    assert face.pose == pytest.approx((0, 25, 0), abs=0.1)


def test_a_pack_in_a_folder_of_its_name_is_found(pack, tmp_path, frame):
    pack.rename(tmp_path / "inner")
    pack.mkdir()
    (tmp_path / "inner").rename(pack / "tiny")

    assert len(build("faces", InsightFace.Config(), tmp_path).faces([frame("koala_two_men.mp4", 60)])[0]) == 2


@pytest.mark.parametrize("name", ["buffalo_l", "antelopev2"])
def test_published_packs_are_fetched_to_where_they_are_read(name):
    config = InsightFace.Config(pack=name)

    (repository,) = config.repositories()

    assert repository == Repository("public-data/insightface", (f"models/{name}/*.onnx",), folder="insightface")
    assert config.weights(Path("root")) == [(Path("root") / repository.folder / repository.files[0]).parent]


def test_another_pack_is_one_s_own():
    assert InsightFace.Config().repositories() == []
