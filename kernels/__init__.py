"""Triton kernels of the GPU runtime, installed as `approxrt.kernels`.

One kernel a file: its formula, layouts and preconditions, the jit functions, then the launch wrapper that takes torch
tensors. Which tile sizes run is decided in `launch` alone. The package's modules import torch and triton; this one
imports nothing.

Every kernel also runs under triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) on CPU tensors,
and compiles ahead of time without a GPU (`python -m approxrt.kernels.compile_report`).
"""
