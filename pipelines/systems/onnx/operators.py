"""The operators that a released model may use.

How the list was chosen: the operators of ONNX's default domain that exports from
torch are made of (convolutional and residual networks, inception, vision and other transformers,
recurrent networks, embeddings and tables, quantised networks), with their near relatives. Each maps
tensors to tensors and computes the same answer each time. Left out are

- control flow: If, Loop, Scan, SequenceMap. A loop's length may depend on the input, and a branch
  may answer some inputs in another way.
- sequences, optional values, and what makes texts or takes them apart: SequenceAt, Optional,
  StringConcat, TfIdfVectorizer, … Texts as such are allowed: Equal compares the categories of a
  table with those that are known.
- random numbers: RandomNormal, Multinomial, Bernoulli, Dropout (a no-op in an exported model). The
  gates would judge other answers than those given later.
- what decodes files or is there for training: ImageDecoder, SoftmaxCrossEntropyLoss, …
- operators for detection, sound and other tasks (RoiAlign, NonMaxSuppression, STFT, …) and those
  whose number of values depends on the input (NonZero, Unique, Compress): code of the runtime that
  no such model needs.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, NodeProto

from pipelines.systems.onnx.model_file import ModelProto, all_nodes

_BY_KIND = {
    "element by element": """
        Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr
        BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu
        Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log
        Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid
        Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """,
    "products": """
        Attention Conv ConvInteger ConvTranspose Einsum GRU Gemm LSTM MatMul MatMulInteger RNN
        RotaryEmbedding
    """,
    "pooling": """
        AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool
    """,
    "normalisation": """
        BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization
        LpNormalization RMSNormalization
    """,
    "reductions": """
        ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
        Softmax TopK
    """,
    "shapes and tables": """
        Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather
        GatherElements GatherND Identity OneHot Pad Range Reshape Resize ScatterElements
        ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze
    """,
    "quantised": """
        DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear
    """,
}
ALLOWED = frozenset(name for names in _BY_KIND.values() for name in names.split())
"""Operators of the default domain, whatever their version."""
_DEFAULT = ("", "ai.onnx")
_PLAIN = frozenset(
    getattr(AttributeProto, name)
    for name in ("FLOAT", "INT", "STRING", "TENSOR", "FLOATS", "INTS", "STRINGS")
)
"""Types of attributes; all others hold graphs, sparse tensors, types or several tensors."""
_FIELDS = {"name", "type", "doc_string", "f", "i", "s", "t", "floats", "ints", "strings"}
"""What an attribute may hold, whatever type it says it has."""


def not_allowed(model: ModelProto) -> list[str]:
    """Return what a released model may not hold, each thing once: the list is empty for a good one.

    Looked at are the operators of all graphs and functions and their attributes, the domains, and
    the types of all values that are declared.

    Args:
        model: It need not be valid.
    """
    return list(dict.fromkeys(_found(model)))


def _found(model: ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain not in _DEFAULT:
            yield f"operators of the domain {opset.domain!r}"
    for function in model.functions:
        yield f"a function of its own, {function.name!r}"
    if len(model.training_info):
        yield "a graph for training"
    for node in all_nodes(model):
        yield from _wrong(node)
    graph = model.graph
    if len(graph.sparse_initializer):
        yield "sparse weights"
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            yield f"a value of type {kind.removesuffix('_type').replace('_', ' ')}, {value.name!r}"


def _wrong(node: NodeProto) -> Iterator[str]:
    if node.domain not in _DEFAULT:
        yield f"the operator {node.op_type!r} of the domain {node.domain!r}"
    elif node.op_type not in ALLOWED:
        yield f"the operator {node.op_type!r}"
    for attribute in node.attribute:
        held = {field.name for field, _ in attribute.ListFields()}
        if attribute.type not in _PLAIN or not held <= _FIELDS:
            yield f"the attribute {attribute.name!r} of {node.op_type!r}: no number, text or tensor"
