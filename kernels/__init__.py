"""Triton kernels of the GPU runtime, installed as `approxrt.kernels`.

The package holds no kernel yet: `approxrt.load(..., device="cuda")` raises
`approxrt.errors.DeviceError` and says so.
"""
