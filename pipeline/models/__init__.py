"""The networks that are built here, and their export to ONNX."""
