"""The networks of the ONNX path against what a person saw in frames of real clips: see ``real_clips.yaml``."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from models.insight_face import InsightFace
from models.masks import box_iou
from models.protocols import Detection
from models.registry import build
from models.sam_onnx import SamOnnx
from models.vocabulary import VOCABULARY
from models.yolox import Yolox

SEEN = yaml.safe_load(Path(__file__).with_name("real_clips.yaml").read_text())
CLIPS = SEEN["clips"]
SAME = 0.7
"""Overlap from which on two boxes are around the same thing, one of them drawn by eye."""
RELATED = 0.3
"""Overlap below which a box has nothing to do with another."""

each_clip = pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["file"])


@pytest.fixture(scope="module")
def detected(weights, keyframe):
    """Per subject of a clip: the detection nearest to it or none, and their overlap; then what belongs to none."""
    detector = build("detector", Yolox.Config(), weights)

    @cache
    def detect(index):
        clip = CLIPS[index]
        found = detector.detect([[keyframe(clip["file"], clip["frame"])]], [clip["words"]])[0][0]
        return nearest(clip["subjects"], found)

    return lambda clip: detect(CLIPS.index(clip))


@pytest.fixture(scope="module")
def segmenter(weights):
    return build("segmenter", SamOnnx.Config(), weights)


@pytest.fixture(scope="module")
def faces(weights, frame):
    analyser = build("faces", InsightFace.Config(pack="tiny"), weights)
    analyse = cache(lambda name, index: analyser.faces([frame(name, index)])[0])
    return lambda clip: analyse(clip["file"], clip["frame"])


def nearest(subjects, found):
    pairs = [
        (box_iou(subject["box"], detection.box), s, d)
        for s, subject in enumerate(subjects)
        for d, detection in enumerate(found)
        if detection.word == subject["word"]
    ]
    taken = {}
    for overlap, s, d in sorted(pairs, reverse=True):
        if overlap >= RELATED and s not in taken and d not in [other for other, _ in taken.values()]:
            taken[s] = d, overlap
    matches = [(found[taken[s][0]], taken[s][1]) if s in taken else (None, 0.0) for s in range(len(subjects))]
    used = {d for d, _ in taken.values()}
    return SimpleNamespace(matches=matches, others=[found[d] for d in range(len(found)) if d not in used])


def misses(subject, what, otherwise):
    return subject.get("misses", {}).get(what, otherwise)


@each_clip
def test_the_detector_finds_the_subjects_and_nothing_else(detected, clip):
    result = detected(clip)

    verdicts = [
        "absent" if detection is None else "right" if overlap >= SAME else "loose"
        for detection, overlap in result.matches
    ]
    assert verdicts == [misses(subject, "box", "right") for subject in clip["subjects"]], result
    assert result.others == []


@each_clip
def test_masks_hold_what_is_the_subject_and_not_what_is_beside_it(segmenter, detected, keyframe, clip):
    # Where the detector is wrong the segmenter is asked about the box that the eye drew.
    prompts = [
        detection if overlap >= SAME else Detection(subject["word"], tuple(subject["box"]), 1.0)
        for subject, (detection, overlap) in zip(clip["subjects"], detected(clip).matches, strict=True)
    ]
    found = segmenter.segment([[keyframe(clip["file"], clip["frame"])]], [[prompts]])[0][0]

    wrong = [
        {
            "inside": [[x, y] for x, y in subject["inside"] if not result.mask[y, x]],
            "outside": [[x, y] for x, y in subject["outside"] if result.mask[y, x]],
        }
        for subject, result in zip(clip["subjects"], found, strict=True)
    ]
    known = [{side: misses(subject, side, []) for side in ("inside", "outside")} for subject in clip["subjects"]]
    assert wrong == known


@pytest.mark.parametrize("clip", [*CLIPS, SEEN["again"]], ids=lambda clip: clip["file"])
def test_the_clear_faces_are_found_and_no_others(faces, clip):
    boxes = sorted(face.box for face in faces(clip))

    assert len(boxes) == len(clip["faces"])
    for box, (x0, y0, x1, y1) in zip(boxes, sorted(clip["faces"]), strict=True):
        assert box_iou(box, (x0, y0, x1, y1)) >= SAME
        assert x0 < (box[0] + box[2]) / 2 < x1
        assert y0 < (box[1] + box[3]) / 2 < y1


def test_a_face_is_alike_in_two_clips_and_unlike_somebody_elses(faces):
    man, woman, again = (faces(clip)[0].embedding for clip in (CLIPS[0], CLIPS[1], SEEN["again"]))

    assert man @ again >= 0.72
    assert max(man @ woman, again @ woman) <= 0.54


@each_clip
def test_what_is_written_down_is_sound(clip):
    assert {subject["word"] for subject in clip["subjects"]} == set(clip["words"]) <= set(VOCABULARY)
    for subject in clip["subjects"]:
        x0, y0, x1, y1 = subject["box"]
        assert 0 <= x0 < x1
        assert 0 <= y0 < y1
        assert all(x0 < x < x1 and y0 < y < y1 for x, y in subject["inside"])
        assert misses(subject, "box", "absent") in ("absent", "loose")
        for side in ("inside", "outside"):
            points, wrong = subject[side], misses(subject, side, [])
            assert len(points) >= 3
            # Nothing is proved by a mask that is wrong everywhere.
            assert len(wrong) < len(points)
            assert all(point in points for point in wrong)


def test_ten_clips_are_written_down():
    assert len({clip["file"] for clip in CLIPS}) == len(CLIPS) == 10


@pytest.mark.parametrize(
    ("boxes", "verdicts", "others"),
    [
        ([], [0, 0], 0),
        ([(0, 0, 10, 10)], [1, 0], 0),
        ([(20, 0, 30, 10), (0, 0, 10, 10)], [1, 1], 0),
        ([(0, 0, 10, 10), (0, 0, 10, 9)], [1, 0], 1),
        ([(0, 0, 10, 2)], [0, 0], 1),
    ],
    ids=["nothing", "one of two", "both in any order", "one twice", "a box far too small"],
)
def test_every_detection_counts_once(boxes, verdicts, others):
    subjects = [{"word": "dog", "box": (0, 0, 10, 10)}, {"word": "dog", "box": (20, 0, 30, 10)}]
    found = [Detection("dog", box, 0.9) for box in boxes]

    result = nearest(subjects, found)

    assert [overlap for _, overlap in result.matches] == verdicts
    assert len(result.others) == others
    assert nearest(subjects, [Detection("cat", (0, 0, 10, 10), 0.9)]).matches == [(None, 0.0)] * 2
