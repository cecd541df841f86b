"""Gradients of an ONNX network, in torch: what rounding costs each channel, and weights learned from it."""
