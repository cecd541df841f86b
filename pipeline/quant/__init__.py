"""The mathematics of quantization: ranges, scales, rounding, correction, and the graph with its quantizers."""
