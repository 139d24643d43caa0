"""Small classifiers in ONNX files, written without any model."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8, "int64": TensorProto.INT64,
}  # fmt: skip


def linear(
    file, input_shape, weights, *, dtype="float32", returns="logits", outputs=("logits",), inputs=1
) -> str:
    """Writes a classifier that flattens its input as it lies in memory; returns the path.

    `returns` is a function of the logits: "logits", "Softmax", "Sigmoid" or another operator.
    Further `outputs` are "label"; further inputs have no use.
    """
    kind = TYPES[dtype]
    nodes = [
        helper.make_node("Cast", ["x0"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Identity" if returns == "logits" else returns, ["scores"], [outputs[0]]),
        *(helper.make_node("ArgMax", ["scores"], [name], axis=1, keepdims=0)
          for name in outputs[1:]),
    ]  # fmt: skip
    first = helper.make_tensor_value_info(
        outputs[0],
        TensorProto.INT64 if returns == "ArgMax" else TensorProto.FLOAT,
        [None, *np.shape(weights)[1:]],
    )
    further = [helper.make_tensor_value_info(n, TensorProto.INT64, [None]) for n in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(f"x{n}", kind, input_shape) for n in range(inputs)],
        [*further, first],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "weights")],
    )
    return save(graph, file)


def pooled(file, input_shape, weights) -> str:
    """Writes a classifier of channels-first images of any size: a mean over them, then weights."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return save(graph, file)


def save(graph, file) -> str:
    # The versions of older exporters.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, file)
    return str(file)


def move_weights(file, location: str, content: bytes | None = None) -> None:
    """Moves the weights of a file to external data at a location relative to its folder."""
    model = onnx.load(file)
    (weights,) = model.graph.initializer
    data = numpy_helper.to_array(weights).tobytes()
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (file.parent / location).write_bytes(data if content is None else content)
    file.write_bytes(model.SerializeToString())
