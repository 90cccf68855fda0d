"""The errors a user can cause, each with the exit code the command line returns for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MedtrainError(ValueError):
    """A problem the user can mend: what is wrong, what is allowed, what to type.

    Args:
        message: One clear sentence, lower case, without a trailing traceback.
        hint: What to do or type instead; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MedtrainError):
    """The command line is wrong, or a configured value does not fit the data or other values (exit code 2)."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration or a data set.

    Args:
        where: Dotted config key, or the file's name.
        message: What is wrong and what is allowed.
        hint: What to type instead, or None.
        origin: Where the value came from (`conf/model/unet.yaml`, `command line`), or None.
    """

    where: str
    message: str
    hint: str | None = None
    origin: str | None = None

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        return f"{self.where}: {self.message}{origin}"


class ProblemsError(MedtrainError):
    """Several problems found at once; every one is listed.

    Args:
        problems: At least one problem.
        heading: Printed before the list when there is more than one.
    """

    def __init__(self, problems: Sequence[Problem], *, heading: str | None = None) -> None:
        assert problems
        lines = [str(problem) for problem in problems]
        super().__init__("\n".join([heading, *lines] if heading and len(lines) > 1 else lines))
        self.problems = tuple(problems)
        self.heading = heading


class ConfigError(ProblemsError):
    """The composed configuration is wrong (exit code 2)."""

    exit_code = 2


class DataError(ProblemsError):
    """Files of a data set are missing, unreadable or contradict each other (exit code 1)."""


class MissingExtraError(MedtrainError):
    """An optional package is needed for what was asked.

    Args:
        package: The package that cannot be imported.
        extra: The medtrain extra that installs it.
        purpose: What needs it, e.g. "exporting to ONNX".
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            hint=f"pip install 'medtrain[{extra}]'",
        )


class ProcessKilledError(MedtrainError):
    """A process of the run was killed from outside: the same again may go well."""


class NonFiniteError(MedtrainError):
    """Training produced NaN or infinity and the policy says to stop (exit code 3)."""

    exit_code = 3
