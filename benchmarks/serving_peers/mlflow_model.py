"""The folder that `mlflow models serve` takes: `python mlflow_model.py MODEL FOLDER`."""

import os
import sys

import mlflow
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

options = {"intra_op_num_threads": int(os.environ["PEER_THREADS"])}
model = onnx.load(sys.argv[1])
given = model.graph.input[0]
shape = tuple(d.dim_value or -1 for d in given.type.tensor_type.shape.dim)
mlflow.onnx.save_model(
    model,
    sys.argv[2],
    onnx_execution_providers=["CPUExecutionProvider"],
    onnx_session_options=options,
    pip_requirements=["onnxruntime-gpu"],
    save_as_external_data=False,
    signature=ModelSignature(Schema([TensorSpec(np.dtype(np.uint8), shape, given.name)])),
)
