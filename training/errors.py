"""What can go wrong while prompts are learned.

TrainingError
├── RecipeError         an unknown or impossible recipe value
├── ClassListError      the class list is missing, empty or ambiguous
├── NoImagesError       no readable image where images were promised
├── BackbonePairError   student and teacher cannot see the same view
├── BoostBundleError    a boosting bundle does not fit the backbone
├── DatasetError        a labelled data set cannot be read as one
├── ImportFormatError   another project's checkpoint is not what was named
├── CheckpointError     a checkpoint belongs to another run
├── DivergedError       the loss is no longer a finite number
└── OutOfMemoryError    a batch does not fit the device
"""


class TrainingError(Exception):
    """Root of the errors raised by `training`."""


class RecipeError(TrainingError):
    """A recipe has an unknown key or a value out of range."""


class ClassListError(TrainingError):
    """A class list is missing or empty, names a class twice, or holds a name that a bundle refuses."""


class NoImagesError(TrainingError):
    """A folder holds no image that can be read."""


class BackbonePairError(TrainingError):
    """Student and teacher need images of different size."""


class CheckpointError(TrainingError):
    """A checkpoint was written by a run with other data, backbones or recipe."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class BoostBundleError(TrainingError):
    """A bundle cannot serve as boosting prompts for this backbone."""


class DatasetError(TrainingError):
    """A labelled data set is missing, ambiguous or damaged: a folder, a manifest or a split file."""


class ImportFormatError(TrainingError):
    """A checkpoint of another project is not what it was said to be."""


class OutOfMemoryError(TrainingError):
    """The device has no memory for a batch."""
