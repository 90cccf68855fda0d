"""The letters of pictures, without what draws curves: Matplotlib takes its time to import."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFont


def font(pixels: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along and draws with.

    Args:
        pixels: Size.
        bold: Whether bold.
    """
    return ImageFont.truetype(str(font_file(bold=bold)), pixels)


def font_file(*, bold: bool) -> Path:
    """Where the font lies."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
