"""Masks from boxes, followed through a clip's keyframes, by SAM 2 (Ravi et al., arXiv:2408.00714) in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.masks import box_iou, box_of, mask_iou
from models.pretrained import load_network, load_processor
from models.protocols import Box, Detection, Image, Keyframe, Segmentation
from models.torch_device import HubConfig, placed

ONE_SUBJECT = 0.8
"""Masks that overlap more than this show one subject."""

Propagate = Callable[[int, Box], Sequence[Segmentation | None]]
"""From a keyframe and a box in it to a mask per keyframe of the clip, nothing where the subject is not seen."""


@dataclass(frozen=True, slots=True)
class Followed:
    """One subject through a clip, as propagated from the detection ``seed`` of a keyframe."""

    seed: Detection
    keyframe: int
    segmentations: tuple[Segmentation | None, ...]
    boxes: tuple[Box | None, ...]
    """Around the masks; nothing where the subject is not seen."""


class Sam2Video:
    """A tracker: the best detection starts a subject, the network follows it both ways, and so on.

    A detection whose box a followed subject of the same word already fills starts none: it is that subject. Subjects
    whose masks coincide are one. Each subject has one seed and the network's memory, so it keeps its identity over
    keyframes in which the detector misses it.

    Every subject is propagated alone (transformers does not batch them either), so its masks do not depend on the
    others; what is costly, the encoding of the pictures, is done once.
    """

    class Config(HubConfig):
        """Options of ``backend: sam2_video``."""

        backend: Literal["sam2_video"] = "sam2_video"
        """Name of this backend."""
        model: str = "facebook/sam2.1-hiera-large"
        """Folder under `models.root`; on the model hub, the name of the repository to fetch it from."""
        same_iou: float = Field(0.5, gt=0, lt=1)
        """A detection is a subject that is already followed if its box and that of the mask overlap more than this."""
        max_objects: int = Field(12, ge=1)
        """Subjects that are followed in a clip, those of the best detections."""

    def __init__(self, config: Config, root: Path) -> None:
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        self.config = config
        folder = root / config.model
        self._device, self._dtype = placed(config)
        self._network = load_network(Sam2VideoModel, folder, config)
        self._processor = load_processor(Sam2VideoProcessor, folder, config)
        # The network's answer leaves its own prediction of the mask's IoU out.
        self._network.mask_decoder.register_forward_hook(self._remember_iou)
        self._predicted_iou = 0.0

    def track(
        self, clips: Sequence[Sequence[Keyframe]], detections: Sequence[Sequence[Sequence[Detection]]]
    ) -> list[list[list[tuple[Detection, Segmentation]]]]:
        """Subjects per keyframe and clip, with masks at the image's size and boxes around them.

        ``instance`` counts the subjects of a clip from 0, in the order of their seeds' scores. A detection's score
        is the best one that the detector gave the subject in that keyframe, or its seed's; a mask's score is SAM's own
        prediction of its IoU. A subject has no entry in a keyframe in which the network does not see it.

        Raises:
            ValueError: if detections and keyframes do not match in number.
        """
        found = [
            [list(in_frame) for _, in_frame in zip(clip, per_frame, strict=True)]
            for clip, per_frame in zip(clips, detections, strict=True)
        ]
        busy = [(clip, any(per_frame)) for clip, per_frame in zip(clips, found, strict=True)]
        features = self._features([keyframe.image for clip, wanted in busy if wanted for keyframe in clip])
        return [
            self._track(clip, per_frame, list(islice(features, len(clip)))) if wanted else [[] for _ in clip]
            for (clip, wanted), per_frame in zip(busy, found, strict=True)
        ]

    def _track(
        self, clip: Sequence[Keyframe], found: Sequence[Sequence[Detection]], features: Sequence[dict[str, Any]]
    ) -> list[list[tuple[Detection, Segmentation]]]:
        import torch

        session = self._processor.init_video_session(
            inference_device=self._device, dtype=self._dtype, max_vision_features_cache_size=len(clip)
        )
        for index, encoded in enumerate(features):
            # The session counts its frames; their pixels are encoded already.
            session.add_new_frame(torch.empty(0), index)
            session.cache.cache_vision_features(index, encoded)

        def propagate(keyframe: int, box: Box) -> list[Segmentation | None]:
            return self._propagate(session, [seen.image.shape[:2] for seen in clip], keyframe, box)

        subjects = without_repeats(follow(found, propagate, self.config.same_iou, self.config.max_objects))
        return sightings(found, subjects, self.config.same_iou)

    def _propagate(
        self, session: Any, sizes: Sequence[tuple[int, ...]], keyframe: int, box: Box
    ) -> list[Segmentation | None]:
        session.reset_tracking_data()
        self._processor.add_inputs_to_inference_session(
            session, keyframe, 0, input_boxes=[[list(box)]], original_size=sizes[keyframe]
        )
        seen: list[Segmentation | None] = [None] * len(sizes)
        for index in range(keyframe, len(sizes)):
            seen[index] = self._step(session, sizes[index], index, reverse=False)
        for index in reversed(range(keyframe)):
            seen[index] = self._step(session, sizes[index], index, reverse=True)
        return seen

    def _step(self, session: Any, size: tuple[int, ...], index: int, reverse: bool) -> Segmentation | None:
        from torch.nn.functional import interpolate

        output = self._network(inference_session=session, frame_idx=index, reverse=reverse)
        if not output.object_score_logits.item() > 0:
            return None
        logits = interpolate(output.pred_masks.float(), size, mode="bilinear", align_corners=False)
        mask = (logits[0, 0] > 0).cpu().numpy()
        return Segmentation(mask, self._predicted_iou) if mask.any() else None

    def _features(self, images: Sequence[Image]) -> Iterator[dict[str, Any]]:
        """What the session's cache holds of each picture, encoded a batch ahead."""
        import torch

        for start in range(0, len(images), self.config.batch):
            pixels = self._processor.image_processor(
                images=list(images[start : start + self.config.batch]),
                input_data_format="channels_last",
                return_tensors="pt",
            )["pixel_values"]
            with torch.inference_mode():
                output = self._network.get_image_features(pixels.to(self._device, self._dtype))
            levels, positions = output.fpn_hidden_states, output.fpn_position_encoding
            for place in range(len(pixels)):
                yield {
                    "vision_feats": [level[:, place : place + 1] for level in levels],
                    "vision_pos_embeds": [position[:, :1] for position in positions],
                }

    def _remember_iou(self, _module: Any, _inputs: Any, output: Any) -> None:
        # Of several masks that it offers, the network takes the one with the highest prediction.
        self._predicted_iou = min(max(output[1].float().max().item(), 0.0), 1.0)


def follow(
    found: Sequence[Sequence[Detection]], propagate: Propagate, same_iou: float, max_objects: int
) -> list[Followed]:
    """Subjects from detections per keyframe, best score first (then first keyframe, then first in it).

    A detection starts a subject unless one that is already followed fills its box in that keyframe: the same word, and
    an overlap of the detection's box with that of the mask above ``same_iou``. At most ``max_objects`` are started.
    """
    places = [(index, detection) for index, in_frame in enumerate(found) for detection in in_frame]
    subjects: list[Followed] = []
    for index, detection in sorted(places, key=lambda place: -place[1].score):
        if len(subjects) == max_objects:
            break
        if not any(_overlap(subject, index, detection) > same_iou for subject in subjects):
            seen = tuple(propagate(index, detection.box))
            boxes = tuple(None if part is None else box_of(part.mask) for part in seen)
            subjects.append(Followed(detection, index, seen, boxes))
    return subjects


def without_repeats(subjects: Sequence[Followed]) -> list[Followed]:
    """The subjects, less those that coincide with a better one of the same word, in the order given.

    Two coincide if their masks overlap by more than :data:`ONE_SUBJECT` in most of the keyframes that show both. The
    better one has the greater sum of mask scores over the clip, or else comes first.
    """
    kept: list[int] = []
    for index in sorted(range(len(subjects)), key=lambda index: -_worth(subjects[index])):
        if not any(_coincide(subjects[index], subjects[other]) for other in kept):
            kept.append(index)
    return [subjects[index] for index in sorted(kept)]


def sightings(
    found: Sequence[Sequence[Detection]], subjects: Sequence[Followed], same_iou: float
) -> list[list[tuple[Detection, Segmentation]]]:
    """What there is in each keyframe: the subjects in order, their indices as ``instance``.

    A detection lends its score to the subject it overlaps most, if by more than ``same_iou`` (see :func:`follow`), or
    that it is the seed of; a subject has the best score lent to it in a keyframe, or its seed's if none is.
    """
    result: list[list[tuple[Detection, Segmentation]]] = []
    for index, in_frame in enumerate(found):
        lent: dict[int, float] = {}
        for detection in in_frame:
            owner = _owner(subjects, index, detection, same_iou)
            if owner is not None:
                lent[owner] = max(lent.get(owner, 0.0), detection.score)
        result.append(
            [
                (Detection(subject.seed.word, box, lent.get(number, subject.seed.score), instance=number), segmentation)
                for number, subject in enumerate(subjects)
                if (segmentation := subject.segmentations[index]) is not None
                and (box := subject.boxes[index]) is not None
            ]
        )
    return result


def _owner(subjects: Sequence[Followed], index: int, detection: Detection, same_iou: float) -> int | None:
    for number, subject in enumerate(subjects):
        if subject.keyframe == index and subject.seed is detection:
            return number
    overlaps = [_overlap(subject, index, detection) for subject in subjects]
    best = max(range(len(subjects)), key=overlaps.__getitem__, default=None)
    return best if best is not None and overlaps[best] > same_iou else None


def _overlap(subject: Followed, index: int, detection: Detection) -> float:
    box = subject.boxes[index]
    return 0.0 if box is None or subject.seed.word != detection.word else box_iou(box, detection.box)


def _worth(subject: Followed) -> float:
    return sum(part.score for part in subject.segmentations if part is not None)


def _coincide(a: Followed, b: Followed) -> bool:
    if a.seed.word != b.seed.word:
        return False
    common = [
        mask_iou(one.mask, other.mask) > ONE_SUBJECT
        for one, other in zip(a.segmentations, b.segmentations, strict=True)
        if one is not None and other is not None
    ]
    return sum(common) > len(common) / 2
