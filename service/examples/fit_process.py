"""A process that computes fits on one core that no request needs (docs/decisions/0031).

It starts with the first fit and ends with its parent.

Legend: N labelled examples, M unlabelled examples, K classes, E joint width.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prompted_clip.calibration import softmax
from prompted_clip.features import Features, Floats, Ints, LinearTerm, text_logits
from prompted_clip.fit_report import FitReport, fit_and_report
from prompted_clip.semi_supervised import UnlabelledImages
from service.errors import FitFailedError, RequestInvalidError

logger = logging.getLogger(__name__)

CODE: Final = f"from {__name__} import main; main()"
ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
NICENESS: Final = 10
"""Where the kernel offers no idle policy."""
OUT_OF_MEMORY_SCORE: Final = "1000"
"""Without memory the kernel ends this process, not the service."""
MAX_FIT_S: Final = 600.0
MAX_SCORES: Final = 10_000_000
"""Maximum number of examples times classes, and of classes times classes, which bounds the memory of the process."""
ROWS: Final = 1024
"""Unlabelled examples that are scored at a time."""


@dataclass(frozen=True, eq=False)
class FitJob:
    """The input of a fit; features have unit norm.

    Attributes:
        features_NE, labels_N: labelled examples and their class indices.
        unlabelled_ME: unlabelled examples.
        text_KE: text features of the classes.
        logit_scale: multiplier of cosine similarities.
        class_names: K names.
        method: a key of `FEW_SHOT_METHODS`, or `auto`.
        uses_unlabelled: the unlabelled examples add the candidate `gda-unlabelled`.
    """

    features_NE: NDArray[np.float32]
    labels_N: Ints
    unlabelled_ME: NDArray[np.float32]
    text_KE: NDArray[Any]
    logit_scale: float
    class_names: Sequence[str]
    method: str
    uses_unlabelled: bool = False


@dataclass(frozen=True, eq=False)
class FitResult:
    """The output of a fit.

    Attributes:
        term: see `FewShotFit`.
        report: of the labelled examples.
        predicted, margins: class index and difference of the two highest probabilities of each labelled example in a
            fit without it, then of each unlabelled example: N + M.
    """

    term: LinearTerm
    report: FitReport
    predicted: Ints
    margins: Floats


def check_size(n_examples: int, n_classes: int) -> None:
    """Check that a fit is not too large.

    Raises:
        RequestInvalidError: more than `MAX_SCORES`.
    """
    if max(n_examples, n_classes) * n_classes > MAX_SCORES:
        raise RequestInvalidError(
            f"{n_examples} examples and {n_classes} classes are too many for one fit: their product, and the square of "
            f'the number of classes, may be at most {MAX_SCORES}. With "classes": "examples" only the classes of the '
            "examples count.",
            extra={"limit": MAX_SCORES},
        )


def compute(job: FitJob, features: Features | None = None) -> FitResult:
    """Fit a head in this process.

    Args:
        job: the input.
        features: those of the job's labelled examples, if they were prepared for an earlier fit.
    """
    if features is None:
        features = Features(job.features_NE.astype(np.float64))
    text_logits_NK = features.text_logits(job.text_KE, job.logit_scale)
    unlabelled = None
    if job.uses_unlabelled and len(job.unlabelled_ME):
        unlabelled_ME = job.unlabelled_ME.astype(np.float64)
        unlabelled = UnlabelledImages(unlabelled_ME, text_logits(unlabelled_ME, job.text_KE, job.logit_scale))
    fit, report = fit_and_report(features, job.labels_N, text_logits_NK, job.class_names, job.method, unlabelled)
    tops = [_top(fit.probabilities())]
    for start in range(0, len(job.unlabelled_ME), ROWS):
        rows_NE = job.unlabelled_ME[start : start + ROWS].astype(np.float64)
        tops.append(_top(softmax(fit.logits(rows_NE, text_logits(rows_NE, job.text_KE, job.logit_scale)))))
    predicted, margins = (np.concatenate(parts) for parts in zip(*tops, strict=True))
    return FitResult(fit.term, report, predicted, margins)


def _top(probabilities_NK: Floats) -> tuple[Ints, Floats]:
    """The most probable class of each row, and its margin over the second."""
    highest_N2 = np.partition(probabilities_NK, -2, axis=1)[:, -2:]
    margins_N: Floats = highest_N2[:, 1] - highest_N2[:, 0]
    return probabilities_NK.argmax(axis=1), margins_N


class FitProcess:
    """Runs fits in a process of its own; `run` blocks, and is called by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def run(self, job: FitJob) -> FitResult:
        """Compute a fit.

        Raises:
            FitFailedError: the process ended, for example for lack of memory or after `MAX_FIT_S`, or the computation
                failed.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()
        limit = None
        try:
            connection = self._connection or self._start()
            limit = threading.Timer(MAX_FIT_S, self._kill)
            limit.start()
            connection.send(job)
            result = connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            message = f"The process of the fit ended. It may have run out of memory, or of time ({MAX_FIT_S:.0f} s)."
            raise FitFailedError(f"{message} Retry, or with fewer classes.") from error
        finally:
            if limit:
                limit.cancel()
        if isinstance(result, FitResult):
            return result
        logger.error("fit.failed", extra={"detail": str(result)})
        raise FitFailedError("The fit could not be computed. The server log has the details.")

    def close(self) -> None:
        """End the process, if it runs."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is not None and connection is not None:
            process.kill()
            process.wait()
            connection.close()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            command = (sys.executable, "-P", "-c", CODE, str(descriptor))  # -P: no import from the current directory
            environment = os.environ | ONE_THREAD
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[descriptor], env=environment)  # noqa: S603
        self._connection = Connection(ours.detach())
        return self._connection


def main() -> None:
    """Compute the fits that arrive on the connection of the command line, until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # not in every sandbox
        os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_SCORE)
    features = None
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            if features is None or not features.equals(job.features_NE):  # else only labels have changed
                features = Features(job.features_NE.astype(np.float64))
            try:
                connection.send(compute(job, features))
            except Exception:  # noqa: BLE001  the parent logs it
                connection.send(traceback.format_exc())
