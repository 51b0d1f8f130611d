"""What kernels share: rounding, quantisation, activations, saturating stores.

The arithmetic is that of the CPU engine (approxrt/runtime/reference/encoder.py): round half to even, s_t = m * (1/127).
Device functions here use neither libdevice nor inline assembly, so that the interpreter runs them too.
"""

import triton
import triton.language as tl

# Activations whose largest magnitude is below this become exact zeros with a scale of 0.
QUANTIZE_FLOOR = tl.constexpr(1e-30)
_INVERSE_127 = tl.constexpr(1.0 / 127.0)
_LARGEST_F16 = tl.constexpr(65504.0)
# 1.5 * 2^23: adding it leaves no fraction bits, and the sum is rounded half to even.
_ROUNDER = tl.constexpr(12582912.0)
_LOG2E = tl.constexpr(1.4426950408889634)

# Names of approxrt.artifact.spec.encoder.ACTIVATIONS as constexpr arguments.
ACTIVATION_CODES = {"identity": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "tanh": 4, "silu": 5}


@triton.jit
def quantize(x, peak):
    """f32 x with a row's largest magnitude `peak` (broadcast) -> int8 in [-127, 127]."""
    live = peak > QUANTIZE_FLOOR
    inverse = tl.where(live, tl.div_rn(127.0, tl.where(live, peak, 1.0)), 0.0)
    scaled = x * inverse
    rounded = (scaled + _ROUNDER) - _ROUNDER
    return tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(tl.int8)


@triton.jit
def quantization_scale(peak):
    """s_t of a row whose largest magnitude is `peak`."""
    return tl.where(peak > QUANTIZE_FLOOR, peak * _INVERSE_127, 0.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2E))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """ACTIVATION_CODES over f32 x."""
    if ACTIVATION == 1:
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == 2:
        # 0.5 x (1 + tanh u) = x sigmoid(2u)
        x = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == 3:
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == 4:
        x = 2.0 * sigmoid(2.0 * x) - 1.0
    elif ACTIVATION == 5:
        x = x * sigmoid(x)
    return x


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """f32 x as `dtype`; float16 saturates instead of becoming infinite."""
    if dtype == tl.float16:
        x = tl.minimum(tl.maximum(x, -_LARGEST_F16), _LARGEST_F16)
    return x.to(dtype)
