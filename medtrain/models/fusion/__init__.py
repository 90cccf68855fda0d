"""Fusion of the features of several modalities, any of which a sample may lack."""

from medtrain.models.fusion.base import Fused, Fusion, Tokens, drop_modalities
from medtrain.models.fusion.build import FUSIONS, FusionName, build_fusion

__all__ = ["FUSIONS", "Fused", "Fusion", "FusionName", "Tokens", "build_fusion", "drop_modalities"]
