"""A page that classifies images in the browser: ONNX Runtime Web, and the page itself."""
