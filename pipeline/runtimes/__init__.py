"""OpenVINO and ONNX Runtime behind one interface."""
