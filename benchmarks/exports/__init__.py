"""Models exported from other frameworks, one recipe each, weights seeded.

What enters: "module/recipe.onnx", as the catalogue has it. What leaves: the ONNX file's bytes.
Frameworks are imported by the recipes alone, in a process of their own:
`python -m benchmarks.exports vision/resnet50.onnx FILE`.
"""

from __future__ import annotations

# A recipe that makes another model gets another number; files of older ones are not used.
REVISION = 1
