"""Drop damaged images from a data set before training, so that a truncated file does not stop a run midway."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from training.data.dataset import SPLITS, Dataset, Split, shorten
from training.data.images import is_decodable, read_in_threads
from training.errors import DatasetError


def drop_unreadable(
    dataset: Dataset,
    splits: Sequence[Split] = SPLITS,
    *,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode every image of the given splits and drop those that fail; they are listed in `unreadable`.

    After `few_shot` only the sampled images are decoded, but a class may end up with fewer shots. Before `few_shot`
    all images are decoded, and the sample may change.

    Args:
        dataset: any data set.
        splits: the splits to check; the others are unchanged.
        strict: raise instead of dropping files.
        on_progress: called from this thread with the number of images done and the total.

    Raises:
        DatasetError: `strict` and a file is unreadable, or a split or a train class would have no images left.
    """
    checked = [split for split in SPLITS if split in splits and split in dataset.splits]
    paths = list(dict.fromkeys(image.path for split in checked for image in dataset.splits[split]))
    sound = read_in_threads(is_decodable, paths, on_progress)
    bad = tuple(path for path, is_sound in zip(paths, sound, strict=True) if not is_sound)
    if not bad:
        return dataset
    found = f"{dataset.name}: {len(bad)} of {len(paths)} images are unreadable: {shorten(bad)}."
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
        msg = f"{found} No {emptied[0]} images are left."
        raise DatasetError(msg)
    try:
        return replace(dataset, splits=kept, unreadable=(*dataset.unreadable, *bad))
    except DatasetError as error:
        msg = f"{found} Without them, {error}"
        raise DatasetError(msg) from error
