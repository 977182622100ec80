"""The ``s2v`` command: curation's commands, and those of the trainer. Each imports what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from curation.cli import DONE, Add, UsageError, add_commands, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    return run([add_commands, add_training], arguments)


def add_training(add: Add) -> None:
    """The trainer's commands."""
    train = add(
        "train",
        _train,
        "Train a subject-to-video model on curated shards. Running again resumes from the last checkpoint.",
        "s2v train --data workspace/shards --config configs/train/tiny.yaml steps=100",
    )
    _add_data(train)
    _add_config(train)
    train.add_argument(
        "--out", dest="run", type=Path, metavar="FOLDER", help="checkpoints and metrics; without it runs/CONFIG"
    )
    train.add_argument(
        "--ray",
        nargs="*",
        metavar="key=value",
        help="train on the Ray cluster at RAY_ADDRESS; key: num_workers, cpus and gpus of each, max_failures",
    )
    encode = add(
        "encode",
        _encode,
        "Cache the latents and text embeddings of shards beside them, as a Ray job. Running again resumes.",
        "s2v encode --data workspace/shards --config configs/train/wan1.3b.yaml",
    )
    _add_data(encode)
    _add_config(encode)
    sample = add(
        "sample",
        _sample,
        "Generate a video from a prompt and pictures of its subjects.",
        's2v sample --checkpoint runs/tiny --prompt "A cat on a sofa." --reference cat.png -o out.mp4',
    )
    sample.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FOLDER", help="a run, or one of its checkpoints"
    )
    sample.add_argument("--prompt", required=True, help="what the video shows")
    sample.add_argument(
        "--reference", type=Path, action="append", default=[], metavar="IMAGE", help="a subject; may be repeated"
    )
    sample.add_argument("--seed", type=int, default=0, help="of the noise")
    sample.add_argument("-o", "--output", type=Path, default=Path("out.mp4"), metavar="MP4", help="file to write")
    sample.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the run's config, such as sampler.steps=30"
    )
    evaluate = add(
        "evaluate",
        _evaluate,
        "Measure generated videos against their references: identity, copying, motion, prompt.",
        "s2v evaluate generated/ references/ models.root=weights --json report.json",
    )
    evaluate.add_argument("videos", type=Path, help="a video, a folder of videos, or a .jsonl manifest")
    evaluate.add_argument("references", type=Path, nargs="?", help="folder of their pictures; none for a manifest")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    _add_config(evaluate)
    brought = add(
        "import-kaleido",
        _import_kaleido,
        "Turn a released Kaleido checkpoint into diffusers' format.",
        "s2v import-kaleido kaleido-14b/ models/kaleido",
    )
    brought.add_argument("source", type=Path, help="its folder (with `latest`), or the .pt file")
    brought.add_argument("out", type=Path, help="folder to write")
    taken = add(
        "export-kaleido",
        _export_kaleido,
        "Write a model in diffusers' format as the released Kaleido code reads it.",
        "s2v export-kaleido models/kaleido kaleido-14b/",
    )
    taken.add_argument("source", type=Path, help="folder of a model in diffusers' format")
    taken.add_argument("out", type=Path, help="folder to write")
    export = add(
        "export-model",
        _export_model,
        "Write the transformer of a checkpoint in diffusers' format.",
        "s2v export-model runs/wan1.3b models/mine",
    )
    export.add_argument("checkpoint", type=Path, help="a run, or one of its checkpoints")
    export.add_argument("out", type=Path, help="folder to write")


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", default="workspace/shards", metavar="URI", help="folder of shards")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="YAML file; there is a default for each command")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, such as steps=100")


def _train(options: argparse.Namespace) -> int:
    if options.ray is not None:
        from training.ray_launch import train_on_ray

        return train_on_ray(options.config, [*options.overrides, *options.ray], options.data, options.run)
    from training.launch import train

    return train(options.config, options.overrides, options.data, options.run)


def _encode(options: argparse.Namespace) -> int:
    from training.encode_job import encode_shards

    encode_shards(options.config, options.overrides, options.data)
    return DONE


def _sample(options: argparse.Namespace) -> int:
    from rich.console import Console

    from training.progress import bar
    from training.sampler import sample_video, write_video
    from training.trained import load_trained

    trained = load_trained(options.checkpoint, options.overrides)
    with bar("sampling", Console()) as progress:
        frames = sample_video(
            trained.student.transformer,
            trained.encoders.latents,
            trained.student.text or trained.encoders.text,
            options.prompt,
            options.reference,
            trained.config.sampler,
            options.seed,
            progress,
        )
    write_video(frames, trained.config.sampler.fps, options.output)
    print(f"{options.output}: {len(frames)} frames of {frames.shape[2]} x {frames.shape[1]}")
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from stages.config import change, load
    from training.evaluation.evaluate import EvaluateConfig, evaluate

    if options.references is None and options.videos.suffix != ".jsonl":
        raise UsageError("say where the references are: s2v evaluate VIDEOS REFERENCES (a .jsonl manifest holds both)")
    if options.config is not None:
        config = load(EvaluateConfig, options.config, options.overrides)
    else:
        config = change(EvaluateConfig(), options.overrides)
    report = evaluate(options.videos, options.references, config)
    report.table(Console())
    if options.json is not None:
        options.json.write_text(report.to_json(), encoding="utf-8")
    return DONE


def _import_kaleido(options: argparse.Namespace) -> int:
    from training.kaleido import import_kaleido

    import_kaleido(options.source, options.out)
    return DONE


def _export_kaleido(options: argparse.Namespace) -> int:
    from training.kaleido import export_kaleido

    export_kaleido(options.source, options.out)
    return DONE


def _export_model(options: argparse.Namespace) -> int:
    from training.trained import load_trained

    load_trained(options.checkpoint).student.transformer.save_pretrained(options.out)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
