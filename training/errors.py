"""Errors raised by `training`.

TrainingError
├── RecipeError         unknown recipe key or invalid value
├── ClassListError      missing, empty or ambiguous class list
├── NoImagesError       no readable image
├── BackbonePairError   student and teacher are incompatible
├── BoostBundleError    boosting bundle incompatible with the backbone
├── DatasetError        missing or invalid labelled data set
├── ImportFormatError   invalid checkpoint of another project
├── CheckpointError     checkpoint belongs to another run
├── DivergedError       loss is NaN or infinite
├── NoGainError         training made the model worse
└── OutOfMemoryError    a batch does not fit on the device
"""


class TrainingError(Exception):
    """Base class of all errors raised by `training`."""


class RecipeError(TrainingError):
    """A recipe has an unknown key or an invalid value."""


class ClassListError(TrainingError):
    """A class list is missing or empty, or contains a duplicate or a name that bundles do not allow."""


class NoImagesError(TrainingError):
    """A folder contains no readable image."""


class BackbonePairError(TrainingError):
    """Student and teacher take images of different sizes, a teacher is given twice, or there is no such device."""


class CheckpointError(TrainingError):
    """A checkpoint is damaged, or belongs to a run with other data, backbones or recipe."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class NoGainError(TrainingError):
    """The best state of a run scores lower on held-out images than the model did before training."""


class BoostBundleError(TrainingError):
    """A bundle is missing, or cannot be used as boosting prompts for this backbone."""


class DatasetError(TrainingError):
    """A labelled data set (folder, manifest or split file) is missing, ambiguous or damaged."""


class ImportFormatError(TrainingError):
    """A checkpoint does not have the layout of the selected method."""


class OutOfMemoryError(TrainingError):
    """A batch does not fit in device memory."""
