from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from curation.config import DEFAULT_CONFIG, Config, fingerprint, load_config, select_with
from curation.pairing import References, Verify
from curation.steps import Annotate, Encode, Ingest, Split
from curation.workspace import Workspace
from models import registry
from models.errors import UserError
from stages.config import CONFIG_FOLDER, ConfigError, Section
from stages.records import KIND_ORDER
from stages.select import SelectConfig
from stages.verify import PAINTED

SHIPPED = sorted(CONFIG_FOLDER.glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return file

    return make


class TestShipped:
    @pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
    def test_loads_and_comes_back_from_its_own_dump(self, file) -> None:
        config = load_config(file)
        assert Config.model_validate(config.model_dump(mode="json")) == config
        for task, backend in config.models.chosen().items():
            assert backend.backend in registry.BACKENDS[task]

    def test_the_default_is_embedded(self) -> None:
        assert load_config() == load_config(DEFAULT_CONFIG) == load_config(str(CONFIG_FOLDER / "embedded.yaml"))

    def test_the_default_needs_no_weights(self) -> None:
        config = load_config()
        assert [path for backend in config.models.chosen().values() for path in backend.weights(Path("none"))] == []


class TestErrors:
    @pytest.mark.parametrize(
        ("override", "key", "why"),
        [
            ("split.max_seconds=6", "split.max_seconds", "there is no such key"),
            ("splitt.max_s=6", "splitt", "there is no such key"),
            ("models.detectr.backend=yolox", "models.detectr", "there is no such key"),
            ("references.cross_clip.rules.robot={by: image, min: 0, max: 1}", "references.cross_clip.rules.robot", ""),
            ("split.max_s=soon", "split.max_s", "valid number"),
            ("split.max_s=-1", "split.max_s", "greater than"),
            ("split.max_s=.nan", "split.max_s", ""),
            ("split.max_s=3", "split", "at least twice min_s"),
            ("pack.width=17", "pack.width", "multiple of 2"),
            ("pack.val_share=1", "pack.val_share", "less than 1"),
            ("pack.fit=squash", "pack.fit", "'keep', 'crop' or 'pad'"),
            ("pack=null", "pack", ""),
            ("pack=3", "pack", ""),
            ("models.detector=null", "models.detector", ""),
            ("models.detector=yolox", "models.detector", "`backend: name`"),
            ("models.detector={}", "models.detector", "known: "),
            ("models.detector.backend=skynet", "models.detector.backend", "no backend 'skynet'; known: "),
            ("references.moved.count=1", "references.moved.count", "models.editor"),
            ("models.inpainter=null", "references.inpainted.count", "models.inpainter"),
            ("models.shots.colour=red", "models.shots.colour", ""),
            ("runtime.encode.unit_items=0", "runtime.encode.unit_items", "greater than or equal to 1"),
            ("runtime.encode.operators=[{stages: [decode]}]", "runtime", "['encode']"),
            ("runtime.encode=3", "runtime.encode", ""),
            ("select.subject.min_area=2", "select.subject.min_area", "less than or equal to 1"),
        ],
    )
    def test_name_the_key_and_say_why(self, override, key, why) -> None:
        with pytest.raises(ConfigError) as error:
            load_config(None, [override])
        assert f"{key}" in str(error.value)
        assert why in str(error.value)
        assert "embedded.yaml" in str(error.value)
        assert "\n" not in str(error.value), "one line, not pydantic's page"

    def test_tell_all_at_once(self) -> None:
        with pytest.raises(ConfigError) as error:
            load_config(None, ["split.max_s=soon", "pack.crf=99", "nonsense=1"])
        assert all(key in str(error.value) for key in ("split.max_s", "pack.crf", "nonsense"))

    @pytest.mark.parametrize("override", ["split.max_s", "=6", "", "split.max_s 6"])
    def test_what_is_no_override(self, override) -> None:
        with pytest.raises(ConfigError, match="key=value"):
            load_config(None, [override])

    @pytest.mark.parametrize("override", ["split.max_s=[", "split.max_s={a", "split.max_s='", "split.max_s=\t@"])
    def test_values_that_are_no_yaml(self, override) -> None:
        with pytest.raises(ConfigError, match=r"no YAML"):
            load_config(None, [override])

    def test_a_file_that_is_not_there(self, tmp_path) -> None:
        with pytest.raises(ConfigError, match=r"gone.yaml does not exist.*configs/embedded.yaml"):
            load_config(tmp_path / "gone.yaml")

    @pytest.mark.parametrize(
        "text", ["", "- a\n", "just words", "a: [", "\tmodels: 3", "a: &x [*x", "!!python/object:os.system {}"]
    )
    def test_files_that_are_no_mapping(self, write, text) -> None:
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            load_config(write(text))

    def test_a_folder_and_bytes(self, tmp_path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path)
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path / "binary.yaml")

    def test_no_models(self, write) -> None:
        with pytest.raises(ConfigError, match="models: Field required"):
            load_config(write("split: {}\n"))

    def test_are_shown_by_every_command(self) -> None:
        assert issubclass(ConfigError, UserError)


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "read", "value"),
        [
            ("split.max_s=6", lambda c: c.split.max_s, 6.0),
            ("split.max_s=6.5", lambda c: c.split.max_s, 6.5),
            ("split.by=stride", lambda c: c.split.by, "stride"),
            ("pack.crf=28", lambda c: c.pack.crf, 28),
            ("models.text=null", lambda c: c.models.text, None),
            ("models.root=some/where", lambda c: c.models.root, Path("some/where")),
            ("references.inpainted.prompt=a = b", lambda c: c.references.inpainted.prompt, "a = b"),
            ("references.inpainted.prompt=", lambda c: None, None),
            (
                "select.reference.min_difference={other_frame: 0.5}",
                lambda c: c.select.reference.min_difference["other_frame"],
                0.5,
            ),
            (
                "references.cross_clip.rules.person.min=0.25",
                lambda c: c.references.cross_clip.rules["person"].min,
                0.25,
            ),
            ("runtime.store_gb=2", lambda c: c.runtime.store_gb, 2.0),
        ],
    )
    def test_are_typed(self, override, read, value) -> None:
        if override.endswith("="):
            with pytest.raises(ConfigError, match="prompt"):
                load_config(None, [override])
            return
        found = read(load_config(None, [override]))
        assert found == value
        assert type(found) is type(value) or isinstance(value, Path)

    def test_of_one_runtime_field_keep_the_others(self) -> None:
        plain = load_config().runtime
        changed = load_config(None, ["runtime.annotate.timeout_s=5", "runtime.pack.unit_seconds=7"]).runtime
        assert changed.annotate == plain.annotate.model_copy(update={"timeout_s": 5.0})
        assert changed.pack == plain.pack.model_copy(update={"unit_seconds": 7.0})
        assert changed.pack.unit_items == 1
        assert changed.encode == plain.encode

    def test_of_operators_keep_the_steps_own_units(self) -> None:
        operators = (
            "[{stages: [look, score], cpus: 0.5}, {stages: [caption, ground, segment, describe], gpus: 1, batch: 8}]"
        )
        runtime = load_config(None, [f"runtime.annotate.operators={operators}"]).runtime
        assert [operator.cpus for operator in runtime.annotate.operators] == [0.5, 1]
        assert runtime.annotate.unit_seconds == load_config().runtime.annotate.unit_seconds

    def test_the_last_one_wins(self) -> None:
        assert load_config(None, ["pack.crf=1", "pack.crf=2"]).pack.crf == 2

    def test_of_a_backend_keep_its_name(self) -> None:
        backend = load_config().models.detector
        option = next(iter(type(backend).model_fields.keys() - {"backend"}))
        changed = load_config(None, [f"models.detector.{option}={getattr(backend, option)}"])
        assert changed.models.detector == backend

    @settings(deadline=None, max_examples=50)
    @given(st.floats(0, 1, allow_nan=False), st.integers(0, 51), st.sampled_from(["keep", "crop", "pad"]))
    def test_any_valid_values(self, area, crf, fit) -> None:
        overrides = [f"select.subject.min_area={area!r}", f"pack.crf={crf}", f"pack.fit={fit}"]
        if "e" in repr(area) and "." not in repr(area):
            return  # YAML 1.1 takes 1e-05 for text, and pydantic for a number: tested below.
        config = load_config(None, overrides)
        assert (config.select.subject.min_area, config.pack.crf, config.pack.fit) == (area, crf, fit)

    def test_numbers_that_yaml_takes_for_text(self) -> None:
        assert load_config(None, ["select.subject.min_area=1e-05"]).select.subject.min_area == 1e-05


class TestThresholds:
    def test_are_changed_with_and_without_their_section(self) -> None:
        config = load_config(None, ["select.clip.min_motion=0.25"])
        changed = select_with(config, ["subject.min_area=0.02", "select.clip.max_border=0.5"])
        assert (changed.subject.min_area, changed.clip.max_border, changed.clip.min_motion) == (0.02, 0.5, 0.25)
        assert config.select.subject.min_area == SelectConfig().subject.min_area

    @pytest.mark.parametrize(
        "override",
        [
            "subject.min_aera=0.02",
            "min_area=0.02",
            "subject.min_area=2",
            "subject.min_area=x",
            "subject.min_area",
            "subject=1",
        ],
    )
    def test_that_make_no_sense(self, override) -> None:
        with pytest.raises(ConfigError) as error:
            select_with(load_config(), [override])
        assert override.partition("=")[0].split(".")[-1] in str(error.value)


def leaves(section: BaseModel, path: str = "") -> list[tuple[str, Any]]:
    """Every value of a config with its dotted path; backends and lists are one value."""
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            found += leaves(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", value))
    return found


def changed(value: Any) -> list[Any]:
    """Other values that might be as good."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            others = [value + 1, value + 2, value / 2, value * 1.5, value - 1, value + 0.05]
            return [other for other in others if other != value]
        case str():
            return ["stride", "pad", "fast", "area", "histogram", "poisson", "another"]
        case tuple():
            return ["[another]"]
    return []


STEP_OF = {
    "split.": {"split"},
    "annotate.look.": {"score", "annotate"},
    "annotate.score.": {"score"},
    "annotate.describe.": {"annotate"},
    "references.inpainted.count": set(),
    "references.inpainted.": {"inpainted"},
    "references.augmented.count": set(),
    "references.augmented.": {"augmented"},
    "references.moved.prompts": {"moved"},
    "references.swapped.count": set(),
    "references.swapped.fit.": set(),
    "references.swapped.": {"swapped"},
    "verify.": {"verify"},
    "pack.width": {"encode"},
    "pack.height": {"encode"},
    "pack.fit": {"encode"},
    "pack.fps": {"encode"},
    "pack.crf": {"encode"},
    "pack.preset": {"encode"},
}
"""What each part of the config changes the fingerprints of, by the first that fits; all other parts change none."""

NEED_OTHERS = {"references.moved.count", "mixture.distinct_kinds"}
"""What cannot be changed without something else: a model that the default has not, or a number of references."""


class TestFingerprints:
    @pytest.fixture(scope="class")
    @staticmethod
    def of():
        def read(config: Config) -> dict[str, str]:
            workspace = Workspace("nowhere")
            annotate, references = Annotate(config, workspace), References(config, workspace)
            return {
                "ingest": Ingest(config, workspace).fingerprint,
                "split": Split(config, workspace).fingerprint,
                "score": annotate.score_fingerprint,
                "annotate": annotate.fingerprint,
                "copied": fingerprint(
                    *(references.recipes[kind].fingerprint for kind in KIND_ORDER if kind not in PAINTED)
                ),
                **{kind: references.recipes[kind].fingerprint for kind in PAINTED},
                "verify": Verify(config, workspace).fingerprint,
                "encode": Encode(config, workspace).fingerprint,
            }

        return read

    def test_change_exactly_with_what_they_stand_for(self, of) -> None:
        plain = load_config()
        before, checked = of(plain), 0
        for path, value in leaves(plain):
            if path.startswith(("models.", "runtime.")):
                continue
            for other in changed(value):
                try:
                    after = of(load_config(None, [f"{path}={other}"]))
                except ConfigError:
                    continue
                expected = next((steps for start, steps in STEP_OF.items() if path.startswith(start)), set())
                assert {step for step in before if before[step] != after[step]} == expected, f"{path}={other}"
                checked += 1
                break
            else:
                assert isinstance(value, dict | Path | None) or path in NEED_OTHERS, f"no other value for {path} tried"
        assert checked > 40

    def test_do_not_change_with_runtime(self, of) -> None:
        runtime = [
            "runtime.commit_s=1",
            "runtime.crashes=5",
            "runtime.annotate.unit_items=1",
            "runtime.encode.timeout_s=3",
        ]
        assert of(load_config(None, runtime)) == of(load_config())

    @pytest.mark.parametrize(
        ("task", "steps"),
        [
            ("shots", {"split"}),
            ("text", {"score"}),
            ("detector", {"annotate", "verify"}),
            ("segmenter", {"annotate"}),
            ("embedder", {"annotate", "verify"}),
            ("inpainter", {"inpainted", "swapped"}),
        ],
    )
    def test_change_with_the_model_that_they_stand_for(self, of, configure, task, steps) -> None:
        before, after = of(configure()), of(configure({f"models.{task}.strength": 2}))
        assert {step for step in before if before[step] != after[step]} == steps

    def test_of_videos_cut_by_stride_need_no_shot_detector(self, of, configure) -> None:
        before = of(configure({"split.by": "stride"}))
        assert of(configure({"split.by": "stride", "models.shots.strength": 2})) == before

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.text() | st.integers() | st.floats(allow_nan=False) | st.none(), min_size=1), st.data())
    def test_of_other_parts_are_others(self, parts, data) -> None:
        assert fingerprint(*parts) == fingerprint(*parts)
        other = data.draw(st.permutations(parts)) + data.draw(st.lists(st.text(), max_size=1))
        # Numbers that are equal may still be written differently.
        assert (fingerprint(*other) == fingerprint(*parts)) == (repr(other) == repr(parts))

    def test_are_16_hexadecimal_digits(self) -> None:
        digits = fingerprint("a", SelectConfig(), ["b", 1])
        assert len(digits) == 16
        assert int(digits, 16) >= 0


def test_the_reference_of_the_docs_is_up_to_date() -> None:
    """`docs/config.md` is written from the classes; here only that every section is in it."""
    text = (CONFIG_FOLDER.parent / "docs" / "config.md").read_text()
    for name in Config.model_fields:
        assert name in text


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_yaml_is_what_it_looks_like(file) -> None:
    """No key twice: YAML would silently take the last."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node, deep=False):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert yaml.load(file.read_text(), Strict)
