"""The door to OpenCV for what serves: bytes to pixels, and pixels to the shape a graph takes."""
