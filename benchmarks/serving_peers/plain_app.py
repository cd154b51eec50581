"""The least that serves an ONNX file: what somebody writes by hand in 25 lines. No checks at all.

Binary body in, binary body out; `python plain_app.py MODEL PORT THREADS`.
"""

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

model, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = (-1, *given.shape[1:])
app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    """Answer raw uint8 images by raw float32 outputs."""
    images = np.frombuffer(await request.body(), np.uint8).reshape(shape)
    return Response(session.run(None, {given.name: images})[0].tobytes())


uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")
