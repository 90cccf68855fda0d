"""A phantom of bags of instances, for multiple-instance learning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.cells import read_cells
from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.sources.drawing import cloud, ellipse, generator, write_picture
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.errors import UsageError
from medtrain.registry import Range, register

_INSTANCES_PER_PLANTED = 25


@register("data", "phantom_bags", tags=("images", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomBags(TablePhantom):
    """Generated bags of small pictures of cells; a bag is positive if one or a few of its cells are of another kind.

    Half of the bags are positive, and positive ones are as large as negative ones. The planted cells have a dark
    middle; the size, place and brightness of a cell and the ground behind it tell nothing.

    Args:
        num_samples: Bags, an even number; each of a patient of its own.
        min_bag: Pictures of the smallest bag.
        max_bag: Pictures of the largest bag.
        phantom_size: Rows and columns of a picture.
    """

    root: str | None = "outputs/phantom_bags"
    num_samples: Annotated[int, Range(ge=8)] = 120
    min_bag: Annotated[int, Range(ge=1)] = 5
    max_bag: Annotated[int, Range(ge=1)] = 200
    phantom_size: Annotated[int, Range(ge=12)] = 20

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        target = TargetColumn(column="positive", classes=("0", "1"), names=("negative", "positive"))
        return TableColumns(images=("image",), bag="bag", targets=(target,))

    def instance_truth(self) -> dict[str, np.ndarray]:
        """Which instances are planted: bag -> bool [instances], in the order of `Sample.images`."""
        cells = read_cells(self.generate() / TABLE)
        found: dict[str, list[bool]] = {}
        for bag, planted in zip(cells.column("bag"), cells.column("planted")):
            found.setdefault(bag, []).append(planted == "1")
        return {bag: np.array(values) for bag, values in found.items()}

    def _what(self) -> str:
        return f"{self.num_samples} bags"

    def _write(self, folder: Path) -> None:
        if self.max_bag < self.min_bag:
            raise UsageError(f"data.max_bag={self.max_bag} is below data.min_bag={self.min_bag}")
        rows: list[dict[str, object]] = []
        for index in range(self.num_samples):
            positive = index % 2
            # a positive bag and the negative one before it have the same size
            size = self._draw_size(generator(self.phantom_seed, 5, index // 2))
            rng = generator(self.phantom_seed, 6, index)
            bag = f"bag_{index:04d}"
            planted = np.zeros(size, dtype=bool)
            if positive:
                planted[rng.choice(size, -(-size // _INSTANCES_PER_PLANTED), replace=False)] = True
            for place in range(size):
                name = f"images/{bag}/{place:03d}.png"
                write_picture(folder / name, self._draw(rng, bool(planted[place])), rng)
                rows.append({"bag": bag, "image": name, "positive": positive, "planted": int(planted[place])})
        write_rows(folder / TABLE, rows)

    def _draw_size(self, rng: np.random.Generator) -> int:
        low, high = np.log(self.min_bag), np.log(self.max_bag + 1)
        return int(np.exp(rng.uniform(low, high)))

    def _draw(self, rng: np.random.Generator, planted: bool) -> np.ndarray:
        picture = np.full((self.phantom_size, self.phantom_size), rng.uniform(0.2, 0.4), dtype=np.float32)
        cloud(rng, picture, (float(rng.random()), float(rng.random())), 0.4, 0.3)
        centre = (float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.35, 0.65)))
        radius = float(rng.uniform(0.22, 0.32))
        bright = float(rng.uniform(0.75, 0.95))
        ellipse(picture, centre, (radius, radius * float(rng.uniform(0.85, 1.15))), bright, edge=0.06)
        if planted:
            ellipse(picture, centre, (radius / 2, radius / 2), 0.1, edge=0.05)
        return picture
