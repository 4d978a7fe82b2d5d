"""Class names of the classic datasets, in index order."""

from __future__ import annotations

from collections.abc import Iterable

from methods.errors import UserError, nearest

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

NUS = (
    "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars",
    "castle", "cat", "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog",
    "earthquake", "elk", "fire", "fish", "flags", "flowers", "food", "fox", "frost", "garden",
    "glacier", "grass", "harbor", "horses", "house", "lake", "leaf", "map", "military", "moon",
    "mountain", "nighttime", "ocean", "person", "plane", "plants", "police", "protest", "railroad",
    "rainbow", "reflection", "road", "rocks", "running", "sand", "sign", "sky", "snow", "soccer",
    "sports", "statue", "street", "sun", "sunset", "surf", "swimmers", "tattoo", "temple", "tiger",
    "tower", "town", "toy", "train", "tree", "valley", "vehicle", "water", "waterfall", "wedding",
    "whales", "window", "zebra",
)  # fmt: skip

_WRITTEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def prompt_names(
    classes: tuple[str, ...], written: Iterable[tuple[str, str]] = ()
) -> tuple[str, ...]:
    """The names as they are written in prompts: VOC's joined words are taken apart.

    Args:
        classes: names of classes.
        written: (class, how the user writes it), which goes before the usual form.

    Raises:
        UserError: a class that is not there or is written in two ways, or an empty text.
    """
    own: dict[str, str] = {}
    for name, text in written:
        if name not in classes:
            raise UserError(f"prompts: no class {name!r}{nearest(name, classes)}")
        if own.get(name, text) != text or not text.strip():
            raise UserError(f"prompts: class {name!r} needs one text, not {text!r}")
        own[name] = text
    return tuple(own.get(name, _WRITTEN.get(name, name)) for name in classes)
