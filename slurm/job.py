"""The job that submitit pickles and starts once for each training process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainJob:
    submission: str  # folder
    index: int  # which of its runs

    def __call__(self) -> int:
        """Train as one process of the run; returns the exit status of the training.

        Raises:
            RuntimeError: the run failed; the message names the process whose error was first, with its traceback.
        """
        from slurm.task import train

        return train(self.submission, self.index)
