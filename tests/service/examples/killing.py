"""Kills the process at a chosen system call of the store, or in the middle of a fit."""

import os
import signal

from prompt_store.disk import Disk
from service.examples.fit_process import FitProcess
from tests.prompt_store.faults import CALLS


def kill_at_call(number):
    """Kill this process right before call `number` of those that modify the store, counted from 0."""
    n_calls = 0

    def counted(call):
        def counting(self, *arguments):
            nonlocal n_calls
            if n_calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            n_calls += 1
            return call(self, *arguments)

        return counting

    for name in CALLS:
        setattr(Disk, name, counted(getattr(Disk, name)))


def kill_in_fit():
    """Kill this process while its fit is computed."""
    run = FitProcess.run

    def start_and_kill(self, job):
        run(self, job)  # now its process runs
        self._connection.send(job)
        os.kill(os.getpid(), signal.SIGKILL)

    FitProcess.run = start_and_kill
