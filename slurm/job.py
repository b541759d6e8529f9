"""The job that submitit pickles and runs once per training process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainJob:
    """A training run of a submission."""

    submission: str  # folder of the submission
    index: int  # of the run in the submission

    def __call__(self) -> int:
        """Run one training process; returns its exit status.

        Raises:
            RuntimeError: the run failed; the message has the rank that failed first and its traceback.
        """
        from slurm.task import train

        return train(self.submission, self.index)
