"""Writes the reference of training configs (docs/train_config.md): ``python -m training.config_reference``."""

from __future__ import annotations

from curation.config_reference import sections
from training.config import TrainConfig

INTRODUCTION = """# Training config reference

What a YAML file for `s2v train` may hold; `configs/train/` has complete ones. Any value can also be given on the
command line as `section.key=value`, or `key=value` for those that stand in no section. Unknown keys are errors. This
page is made from the config classes by `make docs`.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *sections(TrainConfig)]).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
