"""medtrain trains medical-imaging models from composed configuration."""

from medtrain.registry import Format, Range, register

__version__ = "0.1.0"
__all__ = ["Format", "Range", "__version__", "register"]
