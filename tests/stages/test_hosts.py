from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from subject_rows import Row, person, subject, videos_of

from stages.hosts import MOST, Hosts
from stages.pair import Individual
from stages.swap import FitConfig


def hosted(
    subjects: Sequence[Row],
    count: int = 1,
    *,
    seed: int = 0,
    videos: Mapping[str, str] | None = None,
    config: FitConfig | None = None,
) -> list[tuple[str, str, int]]:
    """Ids of targets and hosts, and numbers."""
    hosts = Hosts(config or FitConfig(), count, videos or videos_of(subjects))
    for row in subjects:
        hosts.add(row, Individual.of(row))
    return [(target.subject_id, host.subject_id, number) for target, host, number in hosts.pairs(seed)]


def many(size: int, **changes: Any) -> list[Row]:
    return [subject(f"s{number:03}", **changes) for number in range(size)]


def boxed(name: str, width: float, height: float, *, left: float = 200, top: float = 100, **changes: Any) -> Row:
    """A subject that fills most of a box of these sides, in a crop twice as wide and high."""
    right, bottom = left + width, top + height
    crop = [left - width / 2, top - height / 2, right + width / 2, bottom + height / 2]
    area = 0.7 * width * height / (640 * 480)
    boxes = {"box": [left, top, right, bottom], "crop_box": [round(value) for value in crop]}
    return subject(name, **{"area": area, **boxes, **changes})


def test_a_host_is_a_subject_of_another_video() -> None:
    everyone = many(12)
    videos = {row["clip_id"]: f"v{place // 4}" for place, row in enumerate(everyone)}
    found = hosted(everyone, 3, videos=videos)
    assert len(found) == 36
    for target, host, _ in found:
        assert videos[f"clip-{target}"] != videos[f"clip-{host}"]
    assert hosted(everyone, videos=dict.fromkeys(videos, "v")) == []


def test_each_target_has_its_count_of_different_hosts() -> None:
    found = hosted(many(20), 4)
    assert Counter(target for target, _, _ in found) == dict.fromkeys((row["subject_id"] for row in many(20)), 4)
    assert len({(target, host) for target, host, _ in found}) == 80
    assert {number for _, _, number in found} == {0, 1, 2, 3}
    # As many as there are.
    assert len(hosted(many(3), 4)) == 6
    assert hosted(many(20), 0) == []


def test_categories_do_not_mix_but_words_may() -> None:
    everyone = [subject("a", word="cup"), subject("b", word="kettle"), person("c", 0), person("d", 0, word="man")]
    assert {(target, host) for target, host, _ in hosted(everyone)} == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}


@pytest.mark.parametrize(
    "other",
    [
        boxed("b", 100, 200, left=0),  # Cut off at the left.
        boxed("b", 200, 100),  # Lying.
        boxed("b", 20, 40),  # Far away.
        boxed("b", 100, 200, area=0.25),  # Of whose scene too little is to be seen.
    ],
    ids=["cut off", "lying", "far", "filling"],
)
def test_what_does_not_fit_is_no_host(other: Row) -> None:
    target = boxed("a", 100, 200)
    assert ("a", "b", 0) in hosted([target, boxed("b", 110, 190)])
    assert ("a", "b", 0) not in hosted([target, other])
    # There is another one.
    assert ("a", "c", 0) in hosted([target, other, boxed("c", 110, 190)])


def test_the_config_says_what_fits() -> None:
    everyone = [boxed("a", 100, 200), boxed("b", 140, 200)]
    assert len(hosted(everyone)) == 2
    assert hosted(everyone, config=FitConfig(max_aspect_ratio=1.2)) == []


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_subject_is_host_much_more_often_than_others(count: int) -> None:
    everyone = many(300)
    times = Counter(host for _, host, _ in hosted(everyone, count))
    assert max(times.values()) <= MOST * count
    # And few are none, though chance decides: e ** -count is the share that it would leave out at best.
    assert len(times) > {1: 0.55, 2: 0.65, 4: 0.8}[count] * len(everyone)


def test_where_nobody_else_fits_a_subject_is_host_as_often_as_it_takes() -> None:
    sitting = [boxed(f"s{number}", 100, 200, clip="film") for number in range(9)]
    everyone = [*sitting, boxed("host", 100, 200, clip="other")]
    found = hosted(everyone, videos={"film": "v", "other": "w"})
    assert Counter(host for _, host, _ in found)["host"] == 9


def test_the_order_of_rows_does_not_matter() -> None:
    everyone = many(40)
    found = hosted(everyone, 3)
    random.Random(1).shuffle(everyone)
    assert hosted(everyone, 3) == found


def test_a_new_subject_leaves_most_pairs_as_they_are() -> None:
    everyone = many(200)
    before = set(hosted(everyone, 2))
    lost = [len(before - set(hosted([*everyone, subject(f"new-{number}")], 2))) for number in range(10)]
    # Each new one takes about two places of 400.
    assert 0 < sum(lost) / 10 < 12
    gone = [len(before - set(hosted(everyone[:number] + everyone[number + 1 :], 2))) for number in range(0, 200, 20)]
    assert sum(gone) / 10 < 16


def test_another_seed_gives_other_hosts() -> None:
    everyone = many(100)
    first, second = ({(target, host) for target, host, _ in hosted(everyone, seed=seed)} for seed in (0, 1))
    assert len(first & second) < 10


def test_more_hosts_begin_with_those_that_there_were_unless_they_are_wanted_by_many() -> None:
    everyone = many(200)
    few, more = set(hosted(everyone, 1)), set(hosted(everyone, 2))
    assert len(few & more) > 150
