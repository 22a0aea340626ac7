"""What a model is and what was found about it: manifests, the store, reports, aliases. Knows no architecture and no stage."""

from toolkit.bundle.lineage import lineage, recipe_yaml
from toolkit.bundle.manifest import Architecture, Contract, Lineage, Manifest, Plan, Preprocessing, TensorSpec
from toolkit.bundle.report import Limit, Measurement, Report, environment, verdict_of
from toolkit.bundle.store import GOLDEN, GRAPHS, ONNX, WEIGHTS, Bundle, Store

__all__ = [
    "GOLDEN",
    "GRAPHS",
    "ONNX",
    "WEIGHTS",
    "Architecture",
    "Bundle",
    "Contract",
    "Limit",
    "Lineage",
    "Manifest",
    "Measurement",
    "Plan",
    "Preprocessing",
    "Report",
    "Store",
    "TensorSpec",
    "environment",
    "lineage",
    "recipe_yaml",
    "verdict_of",
]
