"""LitServe with an ONNX file: `python litserve_app.py MODEL PORT THREADS`."""

import sys

import litserve as ls
import numpy as np
import onnxruntime as ort

model, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Served(ls.LitAPI):
    """An ONNX file behind LitServe's own endpoint, `POST /predict` with JSON."""

    def setup(self, device: str) -> None:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def decode_request(self, request: dict) -> np.ndarray:
        """Return one image."""
        return np.array(request["image"], np.uint8)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Return its logits."""
        return self.session.run(None, {self.name: image[None]})[0][0]

    def encode_response(self, output: np.ndarray) -> dict:
        """Return them as JSON."""
        return {"logits": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Served(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="critical",
    )
