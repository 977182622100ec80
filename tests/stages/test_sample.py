from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sample import KIND_ORDER, Sample, make_sample, plan_samples, split_by_identity

Row = dict[str, Any]


MODELS = [
    {
        "task": "editor",
        "backend": "paint",
        "weights": [{"repository": "a/b", "revision": None, "licence": "non-commercial", "commercial": False}],
    }
]


def clip(name: str = "c0", **changes: Any) -> tuple[Row, Row, Row, Row]:
    """Rows of a clip, its source, its scores and its annotation."""
    clip_row = {
        "clip_id": name,
        "video_id": f"v-{name}",
        "span_id": "span",
        "start_frame": 0,
        "end_frame": 90,
        "start_s": 0.0,
        "end_s": 3.0,
        "shot": 0,
        "dropped": None,
        "fingerprint": "made-by-split",
    }
    source = {
        "source_id": f"src-{name}",
        "uri": "videos/ü.mp4",
        "video_id": f"v-{name}",
        "fps": 30.0,
        "licence": "CC0",
        "origin": "somewhere",
        "caption": "as it came",
        "caption_source": "manifest",
        "fingerprint": "made-by-ingest",
    }
    score = {"clip_id": name, "motion": 1.5, "phashes": [-1, 2], "fingerprint": "made-by-score"}
    annotation = {
        "clip_id": name,
        "caption": "Ein Hund, 狗.",
        "caption_source": "model",
        "words": ["dog"],
        "subjects": 2,
        "fingerprint": "made-by-annotate",
    }
    return {**clip_row, **changes}, source, score, annotation


def subject(name: str = "s0", clip_id: str = "c0", area: float = 0.2) -> Row:
    frame = {"time": 0.5, "mask": "RLE", "phash": -3, "face_embedding": [0.25], "image_embedding": [0.75]}
    return {
        "subject_id": name,
        "clip_id": clip_id,
        "word": "dog",
        "area": area,
        "best": 0,
        "frames": [frame],
        "face_embedding": None,
        "image_embedding": [0.75],
        "fingerprint": "made-by-annotate",
    }


def reference(name: str, subject_id: str = "s0", kind: str = "original", **changes: Any) -> Row:
    row = {
        "reference_id": name,
        "subject_id": subject_id,
        "kind": kind,
        "source_subject_id": "other",
        "source_clip_id": "far",
        "source_time": 1.25,
        "method": "paint@1",
        "seed": 7,
        "identity_similarity": 0.8,
        "context_difference": 0.3,
        "fingerprint": "made-by-references",
    }
    return {**row, **changes}


def samples_of(
    clips: Sequence[tuple[Row, Row, Row, Row]], subjects: Sequence[Row], references: Sequence[Row], most: int
) -> list[Sample]:
    """What these rows make, from the plan to the JSON."""
    rows = {row["clip_id"]: (row, *others) for row, *others in clips}
    by_id = {row["subject_id"]: row for row in subjects}
    pictures = {row["reference_id"]: row for row in references}
    sources = {name: source["source_id"] for name, (_, source, *_) in rows.items()}
    plans = plan_samples(sources, subjects, references, most)
    assert all(plan.source_id == sources[plan.key] for plan in plans)
    return [make_sample(plan, *rows[plan.key], by_id, pictures, MODELS) for plan in plans]


def names(sample: Sample) -> list[tuple[str, str]]:
    return [(picture.name, picture.reference_id) for picture in sample.pictures]


def test_pictures_are_named_by_subject_kind_and_number() -> None:
    references = [
        reference("r9", "s0", "inpainted"),
        reference("r2", "s0", "other_frame"),
        reference("r1", "s0", "other_frame"),
        reference("r5", "s0", "original"),
        reference("r7", "s1", "cross_clip"),
    ]
    (sample,) = samples_of([clip()], [subject("s0", area=0.5), subject("s1", area=0.1)], references, 6)
    assert names(sample) == [
        ("0.original.0.png", "r5"),
        ("0.other_frame.0.png", "r1"),
        ("0.other_frame.1.png", "r2"),
        ("0.inpainted.0.png", "r9"),
        ("1.cross_clip.0.png", "r7"),
    ]
    assert (sample.key, sample.caption, sample.subjects) == ("c0", "Ein Hund, 狗.", 2)


def test_names_fall_apart_at_the_first_dot_as_readers_of_shards_do_it() -> None:
    """A reader takes what stands before the first dot for the key and the rest for the extension."""
    (sample,) = samples_of([clip("0123456789abcdef")], [subject(clip_id="0123456789abcdef")], [reference("r")], 6)
    assert "." not in sample.key
    for picture in sample.pictures:
        assert re.fullmatch(r"\d+\.[a-z_]+\.\d+\.png", picture.name)
        assert f"{sample.key}.{picture.name}".split(".", 1) == [sample.key, picture.name]


def test_a_sample_says_which_models_made_it_and_under_which_licences() -> None:
    (sample,) = samples_of([clip()], [subject()], [reference("r")], 6)
    assert json.loads(sample.metadata)["models"] == MODELS


def test_every_kind_can_be_named() -> None:
    references = [reference(f"r{kind}", kind=kind) for kind in reversed(KIND_ORDER)]
    (sample,) = samples_of([clip()], [subject()], references, 6)
    assert [name for name, _ in names(sample)] == [f"0.{kind}.0.png" for kind in KIND_ORDER]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_order_of_rows_does_not_matter(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 4))
    clips = [clip(f"c{number}") for number in range(count)]
    subjects = [
        subject(f"s{number}", f"c{data.draw(st.integers(0, 4))}", data.draw(st.sampled_from([0.1, 0.2])))
        for number in range(data.draw(st.integers(0, 6)))
    ]
    references = [
        reference(f"r{number}", f"s{data.draw(st.integers(0, 6))}", data.draw(st.sampled_from(KIND_ORDER)))
        for number in range(data.draw(st.integers(0, 9)))
    ]
    most = data.draw(st.integers(1, 3))
    planned = samples_of(clips, subjects, references, most)
    assert [sample.key for sample in planned] == sorted(sample.key for sample in planned)
    for sample in planned:
        assert 1 <= sample.subjects <= most
        assert len({picture.name for picture in sample.pictures}) == len(sample.pictures) > 0
    for rows in (clips, subjects, references):
        data.draw(st.randoms(use_true_random=False)).shuffle(rows)
    assert samples_of(clips, subjects, references, most) == planned


def test_the_largest_subjects_are_kept() -> None:
    subjects = [subject("s0", area=0.1), subject("s1", area=0.3), subject("s2", area=0.2), subject("s3", area=0.2)]
    references = [reference(f"r{number}", f"s{number}") for number in range(4)]
    (sample,) = samples_of([clip()], subjects, references, 3)
    assert [picture.reference_id for picture in sample.pictures] == ["r1", "r2", "r3"]
    assert [row["subject_id"] for row in json.loads(sample.metadata)["subjects"]] == ["s1", "s2", "s3"]
    assert samples_of([clip()], subjects[::-1], references, 3) == [sample]


def test_subjects_without_a_reference_take_no_place_and_no_clip_goes_without() -> None:
    subjects = [subject("s0", "c0", 0.9), subject("s1", "c0", 0.1), subject("s2", "c1")]
    (sample,) = samples_of([clip("c0"), clip("c1"), clip("c2")], subjects, [reference("r", "s1")], 1)
    assert (sample.key, names(sample)) == ("c0", [("0.original.0.png", "r")])
    assert samples_of([], [], [], 6) == []
    assert samples_of([clip()], [subject()], [], 6) == []


def sample_of(**changes: Any) -> Sample:
    references = [reference("r0", **changes), reference("r1", kind="cross_clip")]
    return samples_of([clip()], [subject()], references, 6)[0]


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_json_tells_where_everything_is_from() -> None:
    told = strict(sample_of().metadata)
    assert set(told) == {"clip", "source", "scores", "caption", "subjects", "models"}
    assert told["clip"]["start_frame"] == 0
    assert told["source"] == {
        "uri": "videos/ü.mp4",
        "video_id": "v-c0",
        "fps": 30.0,
        "licence": "CC0",
        "origin": "somewhere",
    }
    assert told["scores"] == {"motion": 1.5, "phashes": [-1, 2]}
    assert told["caption"] == {"text": "Ein Hund, 狗.", "from": "model", "words": ["dog"]}
    (row,) = told["subjects"]
    assert row["frames"] == [{"time": 0.5, "mask": "RLE", "phash": -3}]
    assert [picture["file"] for picture in row["references"]] == ["0.original.0.png", "0.cross_clip.0.png"]
    provenance = {"reference_id", "source_subject_id", "source_clip_id", "source_time", "method", "seed"}
    assert provenance | {"identity_similarity", "context_difference", "kind"} <= set(row["references"][0])


def keys(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set(value) | {key for each in value.values() for key in keys(each)}
    return {key for each in value for key in keys(each)} if isinstance(value, list) else set()


def test_the_json_holds_no_embeddings_and_nothing_of_the_run() -> None:
    metadata = sample_of().metadata
    assert not [key for key in keys(strict(metadata)) if "embedding" in key or "fingerprint" in key]
    assert "made-by" not in metadata
    # Times of the video are told, times of the run are not.
    assert not re.search(r"\d{4}-\d\d-\d\d|\b1[5-9]\d{8}\b", metadata)


def test_the_same_rows_make_the_same_json() -> None:
    rows = [dict(reversed(row.items())) for row in clip()]
    mixed = samples_of([tuple(rows)], [dict(reversed(subject().items()))], [reference("r0")], 6)  # type: ignore[list-item]
    assert mixed == samples_of([clip()], [subject()], [reference("r0")], 6)


def groups_of(clips: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> list[set[str]]:
    """Clips that must not be divided, by growing each group until it grows no more."""
    left = set(clips)
    groups = []
    while left:
        group = {min(left)}
        while True:
            videos = {clips[name] for name in group}
            more = {name for name in clips if clips[name] in videos}
            more |= {b for a, b in pairs if a in group and b in clips} | {
                a for a, b in pairs if b in group and a in clips
            }
            if more <= group:
                break
            group |= more
        groups.append(group)
        left -= group
    return groups


libraries = st.dictionaries(
    st.integers(0, 16).map(lambda number: f"c{number:02}"),
    st.integers(0, 12).map(lambda number: f"v{number}"),
    max_size=17,
)
shares = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]), st.floats(0, 1, exclude_max=True))


@settings(deadline=None, max_examples=150)
@given(
    libraries,
    st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), max_size=8),
    shares,
    st.randoms(use_true_random=False),
)
def test_videos_and_individuals_are_never_divided(
    clips: dict[str, str], numbers: list[tuple[int, int]], share: float, rng: random.Random
) -> None:
    pairs = [(f"c{a:02}", f"c{b:02}") for a, b in numbers]
    chosen = split_by_identity(clips, pairs, share)
    groups = groups_of(clips, pairs)
    assert chosen <= set(clips)
    assert all(group <= chosen or not group & chosen for group in groups)

    training = [group for group in groups if not group & chosen]
    assert training or not groups
    # The largest group stays, and none is taken that alone exceeds the share while there is a smaller one.
    sizes = sorted(len(group) for group in groups)
    validation = [group for group in groups if group <= chosen]
    assert all(len(group) <= max(share * len(clips), sizes[0]) for group in validation)
    assert not groups or max(len(group) for group in training) == sizes[-1]
    # The share is reached, or all that may be given away is.
    left_out = [group for group in training if len(group) <= max(share * len(clips), sizes[0])]
    assert len(chosen) >= share * len(clips) or len(left_out) <= 1
    # And no more is taken than that: without the last group the share was not reached.
    assert not validation or any(len(chosen - group) < share * len(clips) for group in validation)

    items = list(clips.items())
    rng.shuffle(items)
    turned = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in pairs]
    rng.shuffle(turned)
    assert split_by_identity(dict(items), turned, share) == chosen


def test_nothing_and_one_group_make_no_validation() -> None:
    assert split_by_identity({}, [], 0.5) == set()
    assert split_by_identity({"a": "v", "b": "v"}, [], 0.9) == set()
    assert split_by_identity({"a": "v", "b": "w"}, [("b", "a")], 0.9) == set()
    assert split_by_identity({"a": "v", "b": "w"}, [], 0.0) == set()


def test_pairs_join_over_clips_in_between_and_ignore_clips_that_are_gone() -> None:
    clips = {name: name for name in "abcdef"}
    for share in (0.2, 0.5, 0.8):
        chosen = split_by_identity(clips, [("a", "b"), ("b", "c"), ("d", "gone"), ("gone", "e")], share)
        assert len(chosen & set("abc")) in (0, 3)
    assert split_by_identity({"d": "d", "e": "e"}, [("d", "gone"), ("gone", "e")], 0.5) != set()


def test_a_huge_group_is_never_given_away() -> None:
    # One film of 500 clips, one of 300, and 40 videos of 5.
    clips = {f"a{number}": "film" for number in range(500)} | {f"b{number}": "sequel" for number in range(300)}
    clips |= {f"c{number}": f"v{number // 5}" for number in range(200)}
    for share in (0.01, 0.05, 0.1, 0.15):
        chosen = split_by_identity(clips, [], share)
        assert share * 1000 <= len(chosen) < share * 1000 + 5
        assert {clips[name][0] for name in chosen} == {"v"}
    # Where the rest does not reach the share, validation is smaller than that.
    assert len(split_by_identity(clips, [], 0.25)) == 200
    # A share that the second film fits into may hold it.
    assert {len(split_by_identity(clips, [], share)) for share in (0.3, 0.4)} <= {200, *range(300, 600)}
    # Where every group is larger than the share, the smallest is taken: validation is not empty.
    films = {name: video for name, video in clips.items() if video in ("film", "sequel")}
    assert {films[name] for name in split_by_identity(films, [], 0.01)} == {"sequel"}


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_many_videos_come_close_to_the_share(share: float) -> None:
    clips = {f"c{number}": f"v{number // 3}" for number in range(3000)}
    chosen = split_by_identity(clips, [], share)
    assert share <= len(chosen) / len(clips) < share + 0.002
    by_video = defaultdict(set)
    for name, video in clips.items():
        by_video[video].add(name in chosen)
    assert all(len(sides) == 1 for sides in by_video.values())
