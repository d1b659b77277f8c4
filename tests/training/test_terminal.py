"""Errors of the training commands: one line and exit code 1, or a traceback if unexpected."""

import pytest
import torch
import typer

from training.errors import DatasetError
from training.terminal import exit_on_error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DatasetError("expected [4, 512], found nothing"), "caspl adapt: expected [4, 512], found nothing"),
        (FileNotFoundError(2, "No such file", "gone.csv"), "gone.csv"),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower batch_size"),
    ],
)
def test_expected_errors_are_one_line_and_exit_code_1(capsys, error, says):
    with pytest.raises(typer.Exit) as ended, exit_on_error("adapt"):
        raise error
    assert ended.value.exit_code == 1
    assert says in capsys.readouterr().err


def test_unexpected_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), exit_on_error("adapt"):
        raise RuntimeError("a bug")
