"""What leaves the framework, and what comes in from the published code.

A generator goes out as a folder for the Hugging Face hub, as ONNX or as a ``torch.export`` program; a published checkpoint
comes in as a run. Owns these files and the checks of them; the command line is `tools.export`.
"""

from attributegan.export.graphs import export_onnx, export_program
from attributegan.export.hub import AttributeGenerator, export_generator
from attributegan.export.published import import_published

__all__ = ["AttributeGenerator", "export_generator", "export_onnx", "export_program", "import_published"]
