from __future__ import annotations

from pathlib import Path

import pytest

from curation.calibration.labelled_pairs import LabelError, LabelledPair, read_pairs

KNOWN = {"p1": "person", "p2": "person", "p3": "person", "d1": "animal"}


@pytest.fixture
def read(tmp_path: Path):
    """``read(text)``: the pairs of a file that holds it."""

    def run(text: str | bytes) -> list[LabelledPair]:
        file = tmp_path / "pairs.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_pairs(file, KNOWN)

    return run


class TestReading:
    def test_takes_every_way_to_say_same_or_different(self, read) -> None:
        for word, same in [("1", True), ("true", True), ("Same", True), ("0", False), ("FALSE", False)]:
            assert read(f"a,b,same\np1,p2,{word}\n") == [LabelledPair("p1", "p2", same)]
        assert read("a,b,same\np1,p2,different\n") == [LabelledPair("p1", "p2", False)]

    def test_does_not_mind_what_spreadsheets_do(self, read) -> None:
        text = '\ufeffnote,same,"B", A\r\n"x, y",1,p2,p1\r\n\r\n,0, p3 ,p1\r\n'
        assert read(text) == [LabelledPair("p1", "p2", True), LabelledPair("p1", "p3", False)]


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("", 1, "no column a and no column b and no column same"),
            ("a,b\np1,p2\n", 1, "no column same"),
            ("a,b,same\np1,p2,1\np1,p9,1\n", 3, "b: there is no subject 'p9'"),
            ("a,b,same\np1,p2,1\n,p3,1\n", 3, "no value for a"),
            ("a,b,same\np1,p2\n", 2, "no value for same"),
            ("a,b,same\np1,p2,maybe\n", 2, "same is 'maybe'"),
            ("a,b,same\np1,p2,1\np1,p3,0\np2,p1,1\n", 4, "the pair of line 2 again"),
            ("a,b,same\n\np1,p2,1\np1,p2,0\n", 4, "the pair of line 3 again"),
            ("a,b,same\np1,p1,1\n", 2, "a subject with itself"),
            ("a,b,same\np1,d1,0\n", 2, "person and animal are never compared"),
        ],
    )
    def test_name_the_line(self, read, text, line, message) -> None:
        with pytest.raises(LabelError, match=f"pairs.csv, line {line}: {message}"):
            read(text)

    def test_of_a_file_without_pairs(self, read) -> None:
        with pytest.raises(LabelError, match="holds no pairs"):
            read("a,b,same\n\n")

    def test_of_a_file_that_is_no_text(self, read) -> None:
        with pytest.raises(LabelError, match="cannot be read as a CSV file"):
            read(b"a,b,same\n\xff\xfe\x00,p2,1\n")

    def test_of_no_file(self, tmp_path) -> None:
        with pytest.raises(LabelError, match=r"nothing\.csv cannot be read"):
            read_pairs(tmp_path / "nothing.csv", KNOWN)
