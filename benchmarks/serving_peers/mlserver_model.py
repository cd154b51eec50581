"""MLServer's custom runtime around an ONNX file, by the Open Inference Protocol with JSON."""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Served(MLModel):
    """An ONNX file; `PEER_MODEL` and `PEER_THREADS` name file and threads."""

    async def load(self) -> bool:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        path = os.environ["PEER_MODEL"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.given = self.session.get_inputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer images by logits."""
        asked = payload.inputs[0]
        images = np.array(asked.data, np.uint8).reshape(asked.shape)
        logits = self.session.run(None, {self.given: images})[0]
        output = ResponseOutput(
            name="logits", shape=list(logits.shape), datatype="FP32", data=logits.ravel().tolist()
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
