"""Export and import of models.

Exports a generator as a folder for the Hugging Face hub, as ONNX or as a ``torch.export`` program; imports a published checkpoint
as a run. Owns these files and their validation; the command line is `tools.export`.
"""

from attributegan.export.graphs import export_onnx, export_program
from attributegan.export.hub import AttributeGenerator, export_generator
from attributegan.export.published import import_published

__all__ = ["AttributeGenerator", "export_generator", "export_onnx", "export_program", "import_published"]
