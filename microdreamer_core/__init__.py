"""MicroDreamer's core: 3D generation by score-based iterative reconstruction (SIR), in pure PyTorch.

Importing this package loads torch and nothing heavier; every other library is imported where it is used.
"""

__version__ = "0.1.0"
