"""Whether the images of a data set decode: damaged files are set aside before a run meets them.

Downloads and copies leave cut files behind; finding one in the last epoch of a run costs the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from training.data.dataset import SPLITS, Dataset, Split, shorten
from training.data.images import decodes, read_in_threads
from training.errors import DatasetError


def drop_unreadable(
    dataset: Dataset,
    splits: Sequence[Split] = SPLITS,
    *,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode every image of the given splits and leave out those that do not.

    The files left out are in the result's `unreadable`. Checking after `few_shot` opens the drawn images only and may
    leave a class with fewer shots; checking before it opens all of them and changes the draw.

    Args:
        dataset: any data set.
        splits: which splits to check; others stay as they are.
        strict: raise instead of leaving files out.
        on_progress: called from this thread with the number of images done and in all.

    Raises:
        DatasetError: `strict` and a file is unreadable, or a split or a train class would be left without images;
            names and counts the files.
    """
    checked = [split for split in SPLITS if split in splits and split in dataset.splits]
    paths = list(dict.fromkeys(image.path for split in checked for image in dataset.splits[split]))
    sound = read_in_threads(decodes, paths, on_progress)
    bad = tuple(path for path, is_sound in zip(paths, sound, strict=True) if not is_sound)
    if not bad:
        return dataset
    found = f"{dataset.name}: {len(bad)} of {len(paths)} images cannot be read: {shorten(bad)}."
    if strict:
        msg = f"{found} Replace or remove them."
        raise DatasetError(msg)
    lost = frozenset(bad)
    kept = {
        split: tuple(image for image in images if split not in checked or image.path not in lost)
        for split, images in dataset.splits.items()
    }
    emptied = [split for split, images in kept.items() if not images]
    if emptied:
        msg = f"{found} No {emptied[0]} image is left."
        raise DatasetError(msg)
    try:
        return replace(dataset, splits=kept, unreadable=(*dataset.unreadable, *bad))
    except DatasetError as error:
        msg = f"{found} Without them, {error}"
        raise DatasetError(msg) from error
