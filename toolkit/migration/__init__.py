"""Old models come in: reading checkpoints of unknown origin, matching their tensors to a maintained model, proving it."""

from toolkit.migration.adoption import Adoption, checked_width, from_checkpoint, random_weights
from toolkit.migration.as_found import AsFound
from toolkit.migration.legacy import Comparison, build_legacy, compare
from toolkit.migration.loading import load_matched
from toolkit.migration.matching import Matching, Row, match
from toolkit.migration.onnx_adoption import from_graph
from toolkit.migration.onnx_opset import convert_opset
from toolkit.migration.reading import Checkpoint, open_checkpoint, read_checkpoint
from toolkit.migration.sources import Source, find_source
from toolkit.migration.torchscript_adoption import from_program

__all__ = [
    "Adoption",
    "AsFound",
    "Checkpoint",
    "Comparison",
    "Matching",
    "Row",
    "Source",
    "build_legacy",
    "checked_width",
    "compare",
    "convert_opset",
    "find_source",
    "from_checkpoint",
    "from_graph",
    "from_program",
    "load_matched",
    "match",
    "open_checkpoint",
    "random_weights",
    "read_checkpoint",
]
