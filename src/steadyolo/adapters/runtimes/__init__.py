"""The door to what runs exported graphs: OpenVINO, ONNX Runtime, and torch as the reference."""
