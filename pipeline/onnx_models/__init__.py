"""ONNX files of every origin: read, checked, converted to the one form that quantization takes."""
