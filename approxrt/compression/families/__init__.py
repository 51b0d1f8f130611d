"""The families of models that can be compressed, one class each behind the protocol `approxrt.compression.family`."""
