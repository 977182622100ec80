import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.masks import box_of, mask_iou
from models.pretrained import UnusableWeightsError
from models.protocols import Detection, Keyframe, Segmentation, Segmenter, Tracker
from models.registry import MissingWeightsError, backend_config, build
from models.sam2_video import Followed, Sam2Video, follow, sightings, without_repeats

MODEL = "owner/tiny-video"
SIDE = 64


def save_checkpoint(folder):
    from transformers import (
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
    )

    # The network wants 64 channels of memory, and more of everything else.
    width = 128
    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 4,
                "image_size": [SIDE, SIDE],
                "embed_dim_per_stage": [4, 8, 16, 32],
                "blocks_per_stage": [1, 1, 2, 1],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [4, 4, 4, 4],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": [32, 16, 8, 4],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": SIDE, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=SIDE,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=16,
    )
    torch.manual_seed(0)
    network = Sam2VideoModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    network.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_checkpoint(root / MODEL)
    return root


def config(**options):
    return Sam2Video.Config(model=MODEL, device="cpu", **options)


@pytest.fixture(scope="module")
def tracker(root):
    return build("segmenter", config(batch=3), root)


@pytest.fixture
def sure_tracker(root):
    """Sees every subject everywhere and finds every pixel part of it or not, as the weights have it."""
    tracker = build("segmenter", config(), root)
    tracker._network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100)
    return tracker


def clip(seed, length, height, width):
    """A bright square moves over noise."""
    random = np.random.default_rng(seed)
    keyframes = []
    for index in range(length):
        image = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
        image[5 + 2 * index : 20 + 2 * index, 8 : height // 2] += 120
        keyframes.append(Keyframe(float(index), image, image))
    return keyframes


def dog(x0, y0, x1, y1, score=0.9):
    return Detection("dog", (x0, y0, x1, y1), score)


CLIPS = [clip(0, 4, 40, 60), clip(1, 2, 56, 30), clip(2, 3, 33, 33), clip(3, 1, 48, 48)]
FOUND = [
    [[], [dog(8, 5, 25, 22)], [Detection("cat", (30, 10, 50, 35), 0.6)], []],
    [[dog(3, 30, 20, 50, 0.8)], [dog(3, 4, 20, 20, 0.7)]],
    [[], [], []],
    [[dog(10, 10, 40, 40)]],
]


def test_it_is_a_tracker_and_no_segmenter(tracker):
    assert isinstance(tracker, Tracker)
    assert not isinstance(tracker, Segmenter)


def test_the_config_reads_its_options_and_names_the_repository():
    options = backend_config("segmenter", {"backend": "sam2_video", "same_iou": 0.4, "max_objects": 3})

    assert isinstance(options, Sam2Video.Config)
    assert options.repositories()[0].name == options.model == "facebook/sam2.1-hiera-large"
    with pytest.raises(ValueError, match="same_iou"):
        backend_config("segmenter", {"backend": "sam2_video", "same_iou": 1.0})


def test_masks_have_the_image_s_size_and_boxes_lie_around_them(sure_tracker):
    result = sure_tracker.track(CLIPS, FOUND)

    assert [len(per_frame) for per_frame in result] == [4, 2, 3, 1]
    seen = 0
    for keyframes, per_frame in zip(CLIPS, result, strict=True):
        for keyframe, in_frame in zip(keyframes, per_frame, strict=True):
            assert len({detection.instance for detection, _ in in_frame}) == len(in_frame)
            for detection, segmentation in in_frame:
                seen += 1
                assert segmentation.mask.shape == keyframe.image.shape[:2]
                assert segmentation.mask.dtype == np.bool_
                assert detection.box == box_of(segmentation.mask)
                assert 0 <= segmentation.score <= 1
                assert type(segmentation.score) is type(detection.score) is float
    assert seen >= 10


def test_a_subject_is_there_in_keyframes_before_and_after_its_only_detection(sure_tracker):
    [per_frame] = sure_tracker.track(CLIPS[:1], [[[], [FOUND[0][1][0]], [], []]])

    assert [[detection.word for detection, _ in in_frame] for in_frame in per_frame] == [["dog"]] * 4
    assert [[detection.instance for detection, _ in in_frame] for in_frame in per_frame] == [[0]] * 4
    assert [[detection.score for detection, _ in in_frame] for in_frame in per_frame] == [[0.9]] * 4


def test_the_masks_are_those_of_transformers_own_video_session(tracker):
    keyframes, seed = CLIPS[0], 1
    network, processor = tracker._network, tracker._processor
    session = processor.init_video_session(video=[keyframe.image for keyframe in keyframes])
    processor.add_inputs_to_inference_session(session, seed, 1, input_boxes=[[list(FOUND[0][1][0].box)]])
    network(inference_session=session, frame_idx=seed)
    expected = {}
    for reverse in (False, True):
        for output in network.propagate_in_video_iterator(session, start_frame_idx=seed, reverse=reverse):
            [masks] = processor.post_process_masks([output.pred_masks], original_sizes=[[40, 60]])
            expected[output.frame_idx] = masks[0, 0].numpy()

    [per_frame] = tracker.track([keyframes], [[[], [FOUND[0][1][0]], [], []]])

    assert sorted(expected) == [0, 1, 2, 3]
    found = [in_frame[0][1].mask if in_frame else np.zeros((40, 60), np.bool_) for in_frame in per_frame]
    assert any(0 < mask.sum() < mask.size for mask in found)
    assert all((mask != expected[index]).mean() < 0.002 for index, mask in enumerate(found))


def test_the_box_and_the_pictures_in_between_matter(sure_tracker):
    seed = FOUND[0][1][0]
    [usual] = sure_tracker.track(CLIPS[:1], [[[], [seed], [], []]])
    [elsewhere] = sure_tracker.track(CLIPS[:1], [[[], [dog(40, 20, 60, 40)], [], []]])
    other = [CLIPS[0][0], CLIPS[0][1], CLIPS[3][0], CLIPS[0][3]]
    [otherwise] = sure_tracker.track([other], [[[], [seed], [], []]])

    def mask(per_frame, index):
        return per_frame[index][0][1].mask

    assert (mask(usual, 1) != mask(elsewhere, 1)).any()
    assert (mask(usual, 1) == mask(otherwise, 1)).all()
    assert (mask(usual, 3) != mask(otherwise, 3)).any()


def test_a_batch_of_clips_gives_what_one_by_one_gives_in_order(tracker):
    together = tracker.track(CLIPS, FOUND)
    alone = [tracker.track([keyframes], [found])[0] for keyframes, found in zip(CLIPS, FOUND, strict=True)]

    for left, right in zip(together, alone, strict=True):
        for these, those in zip(left, right, strict=True):
            assert [detection.instance for detection, _ in these] == [detection.instance for detection, _ in those]
            for (_, one), (_, other) in zip(these, those, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-3)
                assert mask_iou(one.mask, other.mask) > 0.99


def test_pictures_are_encoded_in_batches_across_clips_and_only_where_something_was_found(tracker, monkeypatch):
    sizes = []
    encode = tracker._network.get_image_features

    def counted(pixels):
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(tracker._network, "get_image_features", counted)
    tracker.track(CLIPS, FOUND)

    assert sizes == [3, 3, 1]


def test_clips_without_detections_cost_nothing(tracker, monkeypatch):
    monkeypatch.setattr(tracker, "_network", None)

    assert tracker.track([], []) == []
    assert tracker.track([CLIPS[1], [], CLIPS[3]], [[[], []], [], [[]]]) == [[[], []], [], [[]]]
    with pytest.raises(AttributeError):
        tracker.track(CLIPS, FOUND)


def test_what_the_network_does_not_see_has_no_entry(tracker, monkeypatch):
    bias = tracker._network.mask_decoder.pred_obj_score_head.proj_out.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, -100))

    assert tracker.track(CLIPS[:1], FOUND[:1]) == [[[], [], [], []]]


def test_the_score_is_the_predicted_iou_of_the_mask_that_is_taken(sure_tracker):
    head = sure_tracker._network.mask_decoder.iou_prediction_head.proj_out
    head.weight.zero_()
    head.bias.copy_(torch.tensor([0.1, 0.3, 2.0, 0.2]))

    [per_frame] = sure_tracker.track(CLIPS[:1], [[[], [FOUND[0][1][0]], [], []]])

    scores = [in_frame[0][1].score for in_frame in per_frame]
    assert [scores[index] for index in (0, 2, 3)] == pytest.approx([1 / (1 + np.exp(-2.0))] * 3)


def test_at_most_so_many_subjects_are_followed(root):
    tracker = build("segmenter", config(max_objects=1), root)
    tracker._network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100)

    [per_frame] = tracker.track(CLIPS[:1], FOUND[:1])

    assert {detection.word for in_frame in per_frame for detection, _ in in_frame} == {"dog"}


def test_half_precision_works_and_comes_back_as_plain_numbers(root):
    tracker = build("segmenter", config(precision="bfloat16"), root)
    tracker._network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(100)

    [per_frame] = tracker.track(CLIPS[:1], FOUND[:1])

    assert all(len(in_frame) == 2 for in_frame in per_frame)
    assert all(
        segmentation.mask.dtype == np.bool_ and type(segmentation.score) is float
        for in_frame in per_frame
        for _, segmentation in in_frame
    )


@pytest.mark.parametrize("found", [[], [[[], []]], [[[]] * 5]])
def test_detections_must_match_the_keyframes(tracker, found):
    with pytest.raises(ValueError, match="zip"):
        tracker.track(CLIPS[:1], found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error(root):
    with pytest.raises(ValueError, match="sees no GPU"):
        build("segmenter", Sam2Video.Config(model=MODEL, device="cuda"), root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"sam2\.1-hiera-large"):
        build("segmenter", Sam2Video.Config(), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    file = tmp_path / MODEL / "model.safetensors"
    tensors = load_file(file)
    del tensors["memory_encoder.projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})

    with pytest.raises(UnusableWeightsError, match=r"lacks tensors.*memory_encoder\.projection\.weight"):
        build("segmenter", config(), tmp_path)


def test_a_checkpoint_without_its_processor_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    (tmp_path / MODEL / "processor_config.json").unlink()

    with pytest.raises(UnusableWeightsError, match="Sam2VideoProcessor"):
        build("segmenter", config(), tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(root, tmp_path):
    shutil.copytree(root / MODEL, tmp_path / MODEL)
    save_file({"embed.weight": torch.zeros(2, 2)}, tmp_path / MODEL / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(UnusableWeightsError, match="owner/tiny-video"):
        build("segmenter", config(), tmp_path)


SIZE = (30, 100)


def rectangle(x0, y0, x1, y1, score=1.0):
    mask = np.zeros(SIZE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return Segmentation(mask, score)


def followed(word, *segmentations, score=0.5, keyframe=0):
    boxes = tuple(None if part is None else box_of(part.mask) for part in segmentations)
    return Followed(Detection(word, (0, 0, 1, 1), score), keyframe, segmentations, boxes)


class Script:
    """A propagation that answers by the box's left edge, and keeps a record."""

    def __init__(self, **by_left_edge):
        self.answers = {int(name[1:]): answer for name, answer in by_left_edge.items()}
        self.asked = []

    def __call__(self, keyframe, box):
        self.asked.append((keyframe, box[0]))
        return self.answers[box[0]]


def test_detections_start_subjects_from_the_best_on():
    script = Script(x0=[rectangle(0, 0, 10, 10)] * 2, x40=[rectangle(40, 0, 50, 10)] * 2)
    found = [[dog(40, 0, 50, 10, 0.3)], [dog(0, 0, 10, 10, 0.8)]]

    subjects = follow(found, script, 0.5, 12)

    assert script.asked == [(1, 0), (0, 40)]
    assert [(subject.keyframe, subject.seed.score) for subject in subjects] == [(1, 0.8), (0, 0.3)]


def test_equal_scores_start_from_the_first_keyframe_and_the_first_in_it():
    script = Script(
        x0=[rectangle(0, 0, 10, 10)] * 2, x40=[rectangle(40, 0, 50, 10)] * 2, x60=[rectangle(60, 0, 70, 10)] * 2
    )

    follow([[dog(40, 0, 50, 10), dog(0, 0, 10, 10)], [dog(60, 0, 70, 10)]], script, 0.5, 12)

    assert script.asked == [(0, 40), (0, 0), (1, 60)]


def test_a_detection_that_a_followed_subject_fills_starts_none():
    script = Script(x0=[rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)])
    found = [[dog(0, 0, 10, 10, 0.9), dog(0, 0, 10, 9, 0.5)], [dog(4, 0, 15, 10, 0.8)]]

    assert len(follow(found, script, 0.5, 12)) == 1
    assert script.asked == [(0, 0)]


def test_the_mask_of_the_same_keyframe_counts_and_no_other():
    still = [rectangle(0, 0, 10, 10), rectangle(50, 0, 60, 10)]
    script = Script(x0=still, x1=[None, rectangle(1, 0, 11, 10)])

    follow([[dog(0, 0, 10, 10, 0.9)], [dog(1, 0, 11, 10, 0.8)]], script, 0.5, 12)

    assert script.asked == [(0, 0), (1, 1)]


def test_a_box_that_overlaps_just_as_much_as_the_limit_starts_a_subject():
    script = Script(x0=[rectangle(0, 0, 10, 10)], x1=[rectangle(1, 0, 6, 10)])
    half = [[dog(0, 0, 10, 10, 0.9), Detection("dog", (1, 0, 6, 10), 0.5)]]

    assert len(follow(half, script, 0.5, 12)) == 2
    assert len(follow(half, script, 0.49, 12)) == 1


def test_another_word_starts_a_subject_of_its_own():
    script = Script(x0=[rectangle(0, 0, 10, 10)])
    found = [[dog(0, 0, 10, 10, 0.9), Detection("pet", (0, 0, 10, 10), 0.5)]]

    assert [subject.seed.word for subject in follow(found, script, 0.5, 12)] == ["dog", "pet"]


def test_only_the_best_detections_are_followed_if_there_are_more_than_allowed():
    script = Script(x0=[rectangle(0, 0, 10, 10)], x40=[rectangle(40, 0, 50, 10)])
    found = [[dog(60, 0, 70, 10, 0.1), dog(0, 0, 10, 10, 0.2), dog(40, 0, 50, 10, 0.3)]]

    assert [subject.seed.score for subject in follow(found, script, 0.5, 2)] == [0.3, 0.2]
    assert script.asked == [(0, 40), (0, 0)]


def test_of_two_subjects_whose_masks_coincide_the_better_stays():
    poor = followed("dog", rectangle(0, 0, 10, 10, 0.5), rectangle(0, 0, 10, 10, 0.5), None)
    good = followed("dog", rectangle(0, 0, 10, 10, 0.6), rectangle(0, 0, 10, 9, 0.5), None)
    longer = followed("dog", rectangle(0, 0, 10, 10, 0.4), rectangle(0, 0, 10, 9, 0.4), rectangle(0, 0, 5, 5, 0.4))

    assert without_repeats([poor, good]) == [good]
    assert without_repeats([good, longer]) == [longer]
    assert without_repeats([good, good]) == [good]


def test_subjects_are_one_only_if_they_have_one_word_and_coincide_in_most_of_their_common_keyframes():
    a, b, c = rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 8), rectangle(40, 0, 50, 10)
    alone = followed("dog", a, a, a, None)

    for other in (
        followed("pet", a, a, a, None),
        followed("dog", b, b, b, None),
        followed("dog", a, c, None, None),
        followed("dog", None, None, None, a),
    ):
        assert without_repeats([alone, other]) == [alone, other]
    assert without_repeats([alone, followed("dog", a, a, c, c)]) == [followed("dog", a, a, c, c)]


def test_subjects_that_stay_keep_their_order():
    first, repeat = followed("dog", rectangle(0, 0, 9, 9, 0.2)), followed("dog", rectangle(0, 0, 9, 9, 0.1))
    last = followed("dog", rectangle(40, 0, 50, 10, 0.9))

    assert without_repeats([first, repeat, last]) == [first, last]


def test_a_subject_has_the_best_score_that_it_was_found_with_in_the_keyframe_or_its_seed_s():
    seed = dog(0, 0, 10, 10, 0.9)
    subject = Followed(seed, 0, (rectangle(0, 0, 10, 10),) * 3, ((0.0, 0.0, 10.0, 10.0),) * 3)
    found = [[seed], [dog(0, 0, 10, 9, 0.3), dog(0, 0, 9, 10, 0.4), dog(40, 0, 50, 10, 0.8)], []]

    result = sightings(found, [subject], 0.5)

    assert [[detection.score for detection, _ in in_frame] for in_frame in result] == [[0.9], [0.4], [0.9]]


def test_a_seed_counts_even_if_the_mask_that_grew_from_it_has_another_box():
    seed, other = dog(0, 0, 4, 4, 0.6), Detection("dog", (0, 0, 10, 10), 0.2)
    subject = Followed(seed, 0, (rectangle(0, 0, 10, 10),), ((0.0, 0.0, 10.0, 10.0),))

    assert sightings([[seed, other]], [subject], 0.5)[0][0][0].score == 0.6


def test_a_detection_lends_its_score_to_the_subject_it_fits_best_and_to_no_other():
    near, nearer = (
        followed("dog", rectangle(0, 0, 10, 7), score=0.1),
        followed("dog", rectangle(0, 0, 10, 9), score=0.1),
    )

    [in_frame] = sightings([[dog(0, 0, 10, 10, 0.7)]], [near, nearer], 0.5)

    assert [detection.score for detection, _ in in_frame] == [0.1, 0.7]


def test_an_absent_subject_has_no_entry_and_instances_do_not_shift():
    first, second = followed("dog", rectangle(0, 0, 9, 9), None), followed("cat", *[rectangle(40, 0, 50, 10)] * 2)

    result = sightings([[], []], [first, second], 0.5)

    assert [[(detection.instance, detection.word) for detection, _ in in_frame] for in_frame in result] == [
        [(0, "dog"), (1, "cat")],
        [(1, "cat")],
    ]
    assert result[1][0][1] is second.segmentations[1]
    assert result[1][0][0].box == (40, 0, 50, 10)


@st.composite
def scenes(draw):
    """Things in their own columns of the picture, seen in some keyframes, detected in some of those, a bit off."""
    length, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    ticket = iter(draw(st.permutations(range(40))))
    things = []
    found = [[] for _ in range(length)]
    for number in range(count):
        word = draw(st.sampled_from(["dog", "cat"]))
        tops = [draw(st.one_of(st.none(), st.integers(2, 12))) for _ in range(length)]
        boxes = [None if top is None else (25 * number + 2, top, 25 * number + 14, top + 12) for top in tops]
        things.append((word, boxes))
        for index, box in enumerate(boxes):
            for _ in range(draw(st.integers(0, 2)) if box else 0):
                right, down = draw(st.integers(-1, 1)), draw(st.integers(-1, 1))
                moved = (box[0] + right, box[1] + down, box[2] + right, box[3] + down)
                found[index].append(Detection(word, moved, next(ticket) / 40))
    return things, found


def nearest(things):
    """A perfect propagation: it follows the thing whose column the box lies in."""

    def propagate(keyframe, box):
        _, boxes = things[int(box[0] + 1) // 25]
        return [None if where is None else rectangle(*where) for where in boxes]

    return propagate


@settings(deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_every_thing_that_was_found_is_one_subject_wherever_it_is_seen(scene, random):
    things, found = scene
    shuffled = [random.sample(in_frame, len(in_frame)) for in_frame in found]

    subjects = without_repeats(follow(found, nearest(things), 0.5, 12))
    result = sightings(found, subjects, 0.5)

    detected = [
        (word, boxes, [detection.score for in_frame in found for detection in in_frame if _at(number, detection)])
        for number, (word, boxes) in enumerate(things)
    ]
    expected = sorted((entry for entry in detected if entry[2]), key=lambda entry: -max(entry[2]))
    assert [(subject.seed.word, list(subject.boxes)) for subject in subjects] == [entry[:2] for entry in expected]
    for index, in_frame in enumerate(result):
        here = [(instance, entry) for instance, entry in enumerate(expected) if entry[1][index] is not None]
        assert [(detection.instance, detection.word, detection.box) for detection, _ in in_frame] == [
            (instance, word, boxes[index]) for instance, (word, boxes, _) in here
        ]
        for detection, _ in in_frame:
            number = int(detection.box[0]) // 25
            scores = [other.score for other in found[index] if _at(number, other)]
            assert detection.score == (max(scores) if scores else subjects[detection.instance].seed.score)
    again = sightings(shuffled, without_repeats(follow(shuffled, nearest(things), 0.5, 12)), 0.5)
    assert [[detection for detection, _ in in_frame] for in_frame in again] == [
        [detection for detection, _ in in_frame] for in_frame in result
    ]


def _at(number, detection):
    return int(detection.box[0] + 1) // 25 == number
