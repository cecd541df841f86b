"""ONNX files of every maker: read, checked, brought into the one form that quantization takes."""
