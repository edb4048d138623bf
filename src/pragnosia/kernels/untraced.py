"""The bank that torch.compile leaves alone: the graph breaks around it, and it runs as it always does.

Imported only while a graph is traced: `torch.compiler.disable` brings all of the tracer along, seconds of it, and who
traces has it already.
"""

from __future__ import annotations

import torch

from pragnosia import kernels

bank = torch.compiler.disable(kernels._run)
