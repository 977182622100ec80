"""``torchrun -m training``: a rank of a run; the arguments are those of ``s2v train``."""

from __future__ import annotations

import sys

from training.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
