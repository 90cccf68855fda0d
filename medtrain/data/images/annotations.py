"""Masks, boxes and points are checked before training: in threads, and once for every state of their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medtrain.data.images.reading import read_annotation
from medtrain.data.marks import Mark
from medtrain.data.sample import Annotation, ImageRef
from medtrain.errors import DataError, Problem
from medtrain.run.atomic import atomic_write

Pair = tuple[Annotation, ImageRef]
"""An annotation, and the image it is of."""

Checked = tuple[list[int], str]
"""Sizes and modification times of the annotation's file and the image's, and the digest of what was drawn."""


class AnnotationChecks:
    """What is known of annotations, kept in one JSON file; one process at a time may use it.

    Args:
        path: The file; need not exist.
        size_of: H and W of an image as it is read.
        digest_of_mask: Names the content of a mask.
    """

    def __init__(
        self, path: Path, *, size_of: Callable[[ImageRef], tuple[int, int]], digest_of_mask: Callable[[np.ndarray], str]
    ) -> None:
        self.path = path
        self.size_of = size_of
        self.digest_of_mask = digest_of_mask
        self.digests: dict[Pair, str] = {}

    def run(self, pairs: Sequence[Pair], workers: int) -> list[Problem]:
        """Check what was not checked before.

        Args:
            pairs: Annotations, each with an image that can be read.
            workers: Threads.

        Returns:
            What is wrong.
        """
        if not pairs:
            return []
        known = _load(self.path)
        fresh: dict[str, Checked] = {}
        problems: list[Problem] = []
        with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
            try:
                for pair, result in zip(pairs, pool.map(lambda pair: self._check(pair, known), pairs)):
                    if isinstance(result, DataError):
                        problems.extend(result.problems)
                        continue
                    self.digests[pair] = result[1]
                    if known.get(_key(pair)) != result:
                        fresh[_key(pair)] = result
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                if fresh:
                    atomic_write(self.path, json.dumps({**known, **fresh}), sync=False)
        return problems

    def _check(self, pair: Pair, known: dict[str, Checked]) -> Checked | DataError:
        annotation, ref = pair
        state = [*_state(annotation), *_state(ref)]
        before = known.get(_key(pair))
        if before is not None and before[0] == state:
            return before
        try:
            mask = read_annotation(annotation, self.size_of(ref), ref)
        except DataError as error:
            return error
        return state, self.digest_of_mask(mask)


def _key(pair: Pair) -> str:
    return f"{pair[0]} of {pair[1]}"


def _state(annotation: Annotation) -> list[int]:
    """Size and time of its file; those of a box or point, and of a file that is missing, are 0."""
    if isinstance(annotation, Mark):
        return [0, 0]
    try:
        status = (annotation if isinstance(annotation, Path) else annotation.path).stat()
    except OSError:  # reading it says why
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _load(path: Path) -> dict[str, Checked]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # a cache: damaged means empty
        return {}
    return {str(key): ([int(value) for value in state], str(digest)) for key, (state, digest) in data.items()}
