from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from models.masks import box_of, mask_iou
from models.protocols import Detection, Face, Image, Keyframe, Mask, Segmentation, Vector
from stages.describe import DescribeConfig, DescribeStage, subject_id
from stages.difference import Look, difference, shape_bits
from stages.measure import area, decode_rle, perceptual_hash
from stages.media import probe, read_keyframes
from stages.picture import cut_out, decode_png, subject_crop
from stages.records import Clip, Source, Subject
from stages.view import ClipView

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips (../shared/clips) are not on this machine")

HEIGHT, WIDTH = 120, 200
SOURCE = Source(
    source_id="s",
    uri="",
    video_id="v",
    bytes=0,
    container="mp4",
    codec="h264",
    width=WIDTH,
    height=HEIGHT,
    rotation=0,
    fps=24.0,
    frames=90,
    frames_announced=90,
    duration_s=3.0,
    audio_streams=0,
    caption=None,
    caption_source=None,
    licence=None,
    origin=None,
    fingerprint="",
)

RED, GREEN, BLUE = (210, 40, 40), (40, 190, 60), (50, 60, 220)


class Thing:
    """A textured ellipse in one keyframe."""

    def __init__(
        self, x: float, y: float, width: float, height: float, colour: tuple[int, int, int] = RED, word: str = "dog"
    ) -> None:
        rows, columns = np.indices((HEIGHT, WIDTH))
        self.mask: Mask = ((columns - x) / width * 2) ** 2 + ((rows - y) / height * 2) ** 2 <= 1
        self.box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        self.colour = colour
        self.word = word

    def draw(self, image: Image) -> None:
        stripes = (np.indices((HEIGHT, WIDTH)).sum(axis=0) // 3 % 2 * 30).astype(np.uint8)
        image[self.mask] = np.array(self.colour, np.uint8) + stripes[self.mask][:, None]


class Embedder:
    """Mean colour."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> list[Vector]:
        self.calls.append(len(images))
        means = [image[mask].mean(axis=0).astype(np.float32) for image, mask in zip(images, masks, strict=True)]
        return [mean / np.float32(np.linalg.norm(mean)) for mean in means]


class Faces:
    """Finds given faces, in the order in which it is shown pictures."""

    def __init__(self, found: Sequence[list[Face]]) -> None:
        self.found = list(found)
        self.calls: list[int] = []

    def faces(self, images: Sequence[Image]) -> list[list[Face]]:
        self.calls.append(len(images))
        return [self.found.pop(0) if self.found else [] for _ in images]


class Similarity:
    """Likes red."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        self.texts += texts
        return [float(image[..., 0].mean() / 255) for image in images]


def face(x: float, y: float, size: float = 12, turned: float = 0.0, axis: int = 0) -> Face:
    eyes = [(x - size / 4, y), (x + size / 4, y)]
    landmarks = [*eyes, (x + turned * size / 4, y + 2), (x - 2, y + 4), (x + 2, y + 4)]
    half = size / 2
    return Face(
        (x - half, y - half, x + half, y + half),
        0.8,
        np.array(landmarks, np.float32),
        np.eye(4, dtype=np.float32)[axis],
    )


Work = tuple[ClipView, list[list[Detection]], list[list[Segmentation]]]


def work(frames: Sequence[Sequence[Thing]], clip_id: str = "clip", score: float = 0.9) -> Work:
    keyframes, detections, segmentations = [], [], []
    for number, things in enumerate(frames):
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for thing in things:
            thing.draw(image)
        keyframes.append(Keyframe(0.5 * number, image, image))
        detections.append([Detection(thing.word, thing.box, score) for thing in things])
        segmentations.append([Segmentation(thing.mask, 0.95) for thing in things])
    clip = Clip(clip_id, "v", "s", 0, 90, 0.0, 3.0, 0, None, "")
    return ClipView(clip, SOURCE, keyframes), detections, segmentations


def describe(
    *works: Work,
    config: DescribeConfig | None = None,
    faces: Faces | None = None,
    similarity: Similarity | None = None,
    embedder: Embedder | None = None,
) -> list[list[Subject]]:
    stage = DescribeStage(config or DescribeConfig(), embedder or Embedder(), faces, similarity)
    views, detections, segmentations = ([item[part] for item in works] for part in range(3))
    return stage.run(views, detections, segmentations, [f"fp-{number}" for number in range(len(works))])  # type: ignore[arg-type]


def walk(count: int = 5, word: str = "dog", colour: tuple[int, int, int] = RED) -> list[list[Thing]]:
    return [[Thing(50 + 14 * number, 60, 44, 40 + 4 * (number % 2), colour, word)] for number in range(count)]


def test_config_knows_no_other_keys() -> None:
    with pytest.raises(ValidationError):
        DescribeConfig(frames=3)  # type: ignore[call-arg]


def test_a_subject_that_walks_through_the_clip() -> None:
    ((subject,),) = describe(work(walk(6)))
    assert (subject.clip_id, subject.word, subject.category, subject.instance) == ("clip", "dog", "animal", 0)
    assert subject.subject_id == subject_id("clip", "dog", 0)
    assert subject.seen == 6
    assert len(subject.frames) == len(subject.crops) == 4
    times = [frame.time for frame in subject.frames]
    assert times == sorted(set(times))
    assert 0 <= subject.best < 4
    best = subject.frames[subject.best]
    for name in ("area", "overlap", "border", "fragments", "straightness", "brightness", "sharpness", "face"):
        assert getattr(subject, name) == getattr(best, name), name
    assert subject.border == 0
    assert subject.fragments == 1
    assert subject.stability > 0.85
    assert subject.short_side == pytest.approx(41, abs=4)
    assert (subject.frame_width, subject.frame_height) == (WIDTH, HEIGHT)
    assert np.linalg.norm(subject.image_embedding) == pytest.approx(1, abs=1e-5)
    assert subject.image_text is None
    assert subject.face == 0
    assert subject.face_embedding is None
    assert subject.fingerprint == "fp-0"
    assert Subject.to_table([subject]).num_rows == 1


def test_masks_crops_and_boxes_fit_together() -> None:
    item = work(walk(3))
    ((subject,),) = describe(item)
    for place, frame in enumerate(subject.frames):
        mask = decode_rle(frame.mask, subject.frame_height, subject.frame_width)
        number = round(frame.time / 0.5)
        assert np.array_equal(mask, item[2][number][0].mask)
        assert frame.box == list(box_of(mask))
        assert frame.area == area(mask)
        x0, y0, x1, y1 = frame.crop_box
        crop, inside = subject_crop(subject, place)
        assert np.array_equal(crop, item[0].keyframes[number].image[y0:y1, x0:x1])
        assert np.array_equal(inside, mask[y0:y1, x0:x1])
        # A margin of 35 % of the box on each side, as far as there is a frame.
        assert frame.box[0] - x0 == pytest.approx(min(frame.box[0], 0.35 * (frame.box[2] - frame.box[0])), abs=1)
        assert np.median(cut_out(crop, inside)[0][..., 0]) > 180


def test_the_look_of_a_frame_is_that_of_its_mask_and_its_crop() -> None:
    ((subject,),) = describe(work(walk(3)))
    for place, frame in enumerate(subject.frames):
        crop, inside = subject_crop(subject, place)
        assert frame.shape == shape_bits(decode_rle(frame.mask, HEIGHT, WIDTH))
        assert frame.phash == perceptual_hash(crop)
        told = difference(Look.of_frame(frame), Look.of_picture(crop, inside), same_video=True)
        # A crop is scaled on its own: its size in the frame is told by the frame alone.
        assert (told.pose, told.background, told.hash, told.seconds) == (pytest.approx(0, abs=0.06), 0, 0, None)


def test_a_subject_s_own_numbers_are_its_best_frame_s() -> None:
    ((subject,),) = describe(work([[Thing(90, 60, *shape)] for shape in ((30, 60), (60, 30), (50, 50))]))
    best = subject.frames[subject.best]
    for name in ("time", "box", "crop_box", "phash", "shape", "surroundings", "area"):
        assert getattr(subject, name) == getattr(best, name), name
    assert len({frame.shape for frame in subject.frames}) == 3
    assert len(subject.surroundings) == 24


def test_the_turn_of_a_face_is_the_larger_of_pitch_and_yaw() -> None:
    frames = [[Thing(60, 60, 70, 90, RED, "person")]]
    posed = replace(face(60, 50, 16), pose=(10.0, -35.0, 80.0))
    ((subject,),) = describe(work(frames), faces=Faces([[posed]]))
    assert (subject.face_turn, subject.frames[0].face_pose) == (35.0, [10.0, -35.0, 80.0])
    ((untold,),) = describe(work(frames), faces=Faces([[face(60, 50, 16)]]))
    assert (untold.face_turn, untold.frames[0].face_pose) == (None, None)


def test_large_crops_are_scaled_down_and_their_masks_with_them() -> None:
    ((subject,),) = describe(work(walk(1)), config=DescribeConfig(crop_max_side=64))
    crop, mask = subject_crop(subject, 0)
    assert max(crop.shape[:2]) == 64
    assert mask.shape == crop.shape[:2]
    assert np.median(crop[mask], axis=0)[0] > 180


def test_instances_are_numbered_by_mean_area_and_subjects_come_by_coverage() -> None:
    frames = [
        [Thing(30, 60, 24, 24, BLUE), Thing(100, 60, 60, 60, RED), *([Thing(170, 60, 40, 40, GREEN)] if n == 0 else [])]
        for n in range(4)
    ]
    (subjects,) = describe(work(frames))
    colours = {subject.instance: np.argmax(subject.image_embedding) for subject in subjects}
    assert colours == {0: 0, 1: 1, 2: 2}
    # The green one is larger than the blue one, but was there for a moment only.
    assert [subject.instance for subject in subjects] == [0, 2, 1]
    assert len({subject.subject_id for subject in subjects}) == 3


def test_only_the_subjects_that_cover_most_are_kept() -> None:
    frames = [[Thing(25 + 50 * n, 60, 20 + 5 * n, 20 + 5 * n) for n in range(4)]] * 2
    (subjects,) = describe(work(frames), config=DescribeConfig(max_subjects=2))
    assert [subject.instance for subject in subjects] == [0, 1]
    assert min(subject.area for subject in subjects) > area(frames[0][1].mask)


def test_results_do_not_depend_on_the_order_of_the_detections() -> None:
    frames = [[Thing(40, 60, 30, 30, BLUE), Thing(100, 60, 50, 50), Thing(165, 50, 30, 30, GREEN, "cat")]] * 3
    turned = [list(reversed(things)) for things in frames]
    assert describe(work(frames)) == describe(work(turned))


def test_empty_masks_and_unsure_detections_are_dropped() -> None:
    view, detections, segmentations = work(walk(2))
    nothing = Segmentation(np.zeros((HEIGHT, WIDTH), bool), 0.0)
    blank: Work = (view, detections, [[nothing] for _ in segmentations])
    unsure = work(walk(2), score=0.2)
    assert describe(blank, unsure, config=DescribeConfig(min_detection_score=0.3)) == [[], []]
    assert describe() == []
    assert describe(work([[], []])) == [[]]


def test_a_mask_of_another_size_is_an_error() -> None:
    view, detections, _ = work(walk(1))
    with pytest.raises(ValueError, match="mask"):
        describe((view, detections, [[Segmentation(np.ones((5, 5), bool), 1.0)]]))


def test_models_are_asked_once_for_all_clips() -> None:
    embedder, faces, similarity = Embedder(), Faces([]), Similarity()
    people, dogs = work(walk(3, "person"), "a"), work(walk(2), "b")
    first, second = describe(people, dogs, faces=faces, similarity=similarity, embedder=embedder)
    assert embedder.calls == [5]
    # No face is looked for where there is nobody.
    assert faces.calls == [3]
    assert similarity.texts == ["person"] * 3 + ["dog"] * 2
    assert [subject.fingerprint for subject in (*first, *second)] == ["fp-0", "fp-1"]
    assert all(frame.image_text is not None for subject in (*first, *second) for frame in subject.frames)


def test_what_has_no_name_is_not_compared_with_a_text() -> None:
    similarity = Similarity()
    ((nameless,), (named,)) = describe(work(walk(2, "subject")), work(walk(2)), similarity=similarity)
    assert similarity.texts == ["dog", "dog"]
    assert nameless.image_text is None
    assert nameless.category == "object"
    assert named.image_text == named.frames[named.best].image_text is not None


def test_a_face_belongs_to_the_person_around_it() -> None:
    frames = [
        [Thing(50, 70, 50, 80, RED, "person"), Thing(150, 70, 40, 60, BLUE, "person"), Thing(100, 30, 30, 30, GREEN)]
    ] * 2
    seen = [face(50, 50, axis=0), face(150, 55, axis=1), face(100, 30, axis=2), face(180, 10, axis=3)]
    (subjects,) = describe(work(frames), faces=Faces([seen, seen]))
    by_word = {(subject.word, subject.instance): subject.face_embedding for subject in subjects}
    assert by_word == {("person", 0): [1, 0, 0, 0], ("person", 1): [0, 1, 0, 0], ("dog", 0): None}


def test_the_largest_face_of_a_person_counts_and_embeddings_are_averaged() -> None:
    frames = [[Thing(60, 60, 70, 90, RED, "person")]] * 3
    found = [[face(60, 50, 8, axis=2), face(60, 50, 16, axis=0)], [face(60, 50, 16, axis=1)], []]
    ((subject,),) = describe(work(frames), faces=Faces(found))
    assert [frame.face for frame in subject.frames] == [0.8, 0.8, 0.0]
    assert subject.frames[2].face_embedding is None
    assert subject.face_embedding == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])
    assert subject.best < 2


def test_the_best_frame_is_whole_and_of_usual_size() -> None:
    things = [Thing(20, 60, 60, 50), Thing(50, 60, 60, 50), Thing(75, 60, 20, 20), Thing(90, 60, 60, 50)]
    ((subject,),) = describe(work([[thing] for thing in things]))
    assert subject.frames[subject.best].time in (0.5, 1.5)
    assert subject.border == 0


def test_the_best_frame_of_a_person_shows_the_face_from_the_front() -> None:
    frames = walk(4, "person")
    centres = [50 + 14 * number for number in range(4)]
    found = [[], [face(centres[1], 60, turned=0.9)], [face(centres[2], 60)], [face(centres[3], 60, turned=-0.8)]]
    ((subject,),) = describe(work(frames), faces=Faces(found))
    assert subject.frames[subject.best].time == 1.0


def test_frames_that_differ_are_kept_before_frames_that_repeat() -> None:
    lying, standing = (60, 30), (30, 60)
    shapes = [standing] * 4 + [lying] + [standing] * 3
    ((subject,),) = describe(work([[Thing(90, 60, *shape)] for shape in shapes]), config=DescribeConfig(keep_frames=2))
    assert 2.0 in [frame.time for frame in subject.frames]
    assert len(subject.frames) == 2


def test_overlap_is_with_whatever_else_is_in_the_frame() -> None:
    things = [Thing(80, 60, 60, 60), Thing(110, 60, 60, 60, BLUE, "cat")]
    (subjects,) = describe(work([things]))
    assert [subject.overlap for subject in subjects] == [mask_iou(things[0].mask, things[1].mask)] * 2
    assert [subject.stability for subject in subjects] == [0, 0]
    assert [subject.seen for subject in subjects] == [1, 1]


@needs_clips
def test_a_real_person_without_any_network() -> None:
    from models.colour_texture import ColourTexture
    from models.grabcut import GrabCut
    from models.motion_saliency import MotionSaliency

    views = []
    for name in ("asl_personB_book.mkv", "davis_bear.mp4"):
        seconds = probe(CLIPS / name).duration_s
        times = [(number + 0.5) * seconds / 4 for number in range(4)]
        keyframes = read_keyframes(CLIPS / name, times, 1 / 24, 320)
        views.append(ClipView(Clip(name, "v", "s", 0, 1, 0.0, seconds, 0, None, ""), SOURCE, keyframes))
    clips = [view.keyframes for view in views]
    detections = MotionSaliency(MotionSaliency.Config(), CLIPS).detect(clips, [["woman"], ["bear"]])
    segmentations = GrabCut(GrabCut.Config(), CLIPS).segment(clips, detections)
    stage = DescribeStage(DescribeConfig(), ColourTexture(ColourTexture.Config(), CLIPS), None, None)
    for view, subjects in zip(views, stage.run(views, detections, segmentations, ["", ""]), strict=True):
        main = subjects[0]
        assert main.seen >= 3
        assert 0.05 < main.area < 0.5
        assert main.straightness < 0.3
        assert main.stability > 0.6
        assert decode_png(main.crops[main.best]).shape[2] == 3
        assert main.category == {"woman": "person", "bear": "animal"}[main.word]
        assert view.clip.clip_id == main.clip_id
