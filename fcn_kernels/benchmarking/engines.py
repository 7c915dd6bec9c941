"""Inference engines as rivals, where they are installed: ONNX Runtime and OpenVINO, on graphs written node by node.

They use as many threads as torch, compute in float32, write into memory that is there, and hold weights as constants,
which they lay out beforehand: a graph is compiled once, untimed, and what to fuse is theirs to find. Neither can be
held to an instruction set: ONNX Runtime's kernels and some of OpenVINO's look at the processor for themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util

import torch
from torch import Tensor

from fcn_kernels.benchmarking.formulations import Window
from fcn_kernels.benchmarking.workload import Method, Tensors

PACKAGES = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
OPSET, IR_VERSION = 18, 10  # of 2023: every version of the last years reads them


def installed() -> dict[str, str]:
    """Engine -> version; none without the package that writes graphs."""
    if util.find_spec("onnx") is None:
        return {}
    return {name: metadata.version(package) for name, package in PACKAGES.items() if util.find_spec(package)}


@dataclass(frozen=True)
class Value:
    """What a node of a graph makes: an image."""

    name: str
    shape: tuple[int, ...]  # [N, C, H, W]


class Graph:
    """An ONNX graph in the making, whose inputs are some tensors of a workload."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.inputs: dict[str, Tensor] = {}
        self._nodes: list = []
        self._constants: list = []

    def input(self, name: str) -> Value:
        self.inputs[name] = self.tensors[name].detach().contiguous()
        return Value(name, tuple(self.tensors[name].shape))

    def _constant(self, value: Tensor | Sequence[int]) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(torch.as_tensor(value).detach().contiguous().numpy(), name))
        return name

    def _node(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attributes: object) -> Value:
        from onnx import helper

        name = f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return Value(name, tuple(shape))

    def interpolate(self, x: Value, size: tuple[int, int]) -> Value:
        shape = (*x.shape[:2], *size)
        inputs = [x.name, "", "", self._constant(shape)]
        return self._node("Resize", inputs, shape, mode="linear", coordinate_transformation_mode="half_pixel")

    def cropped(self, x: Value, offset: tuple[int, int], size: tuple[int, int]) -> Value:
        if (offset, size) == ((0, 0), x.shape[2:]):
            return x
        ends = [o + s for o, s in zip(offset, size, strict=True)]
        inputs = [x.name, *map(self._constant, (offset, ends, (2, 3)))]
        return self._node("Slice", inputs, (*x.shape[:2], *size))

    def transposed(self, x: Value, stride: int, offset: int, size: tuple[int, int]) -> Value:
        """As `formulations.padded_interpolate`."""
        rows, columns = (Window.of(x.shape[axis], size[axis - 2], stride, offset) for axis in (2, 3))
        x = self.cropped(x, (rows.start, columns.start), (rows.stop - rows.start, columns.stop - columns.start))
        padded = [x.shape[2] + rows.before + rows.after, x.shape[3] + columns.before + columns.after]
        pads = self._constant([0, 0, rows.before, columns.before, 0, 0, rows.after, columns.after])
        x = self._node("Pad", [x.name, pads], (*x.shape[:2], *padded))
        x = self.interpolate(x, (stride * padded[0], stride * padded[1]))
        return self.cropped(x, (rows.skip, columns.skip), size)

    def add(self, a: Value, b: Value) -> Value:
        return self._node("Add", [a.name, b.name], a.shape)

    def score(self, x: Value, weight: Tensor, bias: Tensor) -> Value:
        inputs = [x.name, self._constant(weight[:, :, None, None]), self._constant(bias)]
        return self._node("Conv", inputs, (x.shape[0], weight.shape[0], *x.shape[2:]))

    def softmax(self, x: Value) -> Value:
        return self._node("Softmax", [x.name], x.shape, axis=1)

    def log_softmax(self, x: Value) -> Value:
        return self._node("LogSoftmax", [x.name], x.shape, axis=1)

    def sigmoid(self, x: Value) -> Value:
        return self._node("Sigmoid", [x.name], x.shape)

    def argmax(self, x: Value) -> Value:
        return self._node("ArgMax", [x.name], (x.shape[0], *x.shape[2:]), axis=1, keepdims=0)

    def finish(self, result: Value) -> tuple[bytes, Tensor]:
        """The model, and memory for its result."""
        from onnx import checker, helper

        memory = torch.empty(result.shape, dtype=torch.int64 if self._nodes[-1].op_type == "ArgMax" else torch.float32)

        def declared(name: str, t: Tensor) -> object:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(t.numpy().dtype), t.shape)

        inputs = [declared(name, t) for name, t in self.inputs.items()]
        graph = helper.make_graph(self._nodes, "graph", inputs, [declared(result.name, memory)], self._constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        checker.check_model(model, full_check=True)
        return model.SerializeToString(), memory


Build = Callable[[Graph], Value]


def _onnx_runtime(model: bytes, inputs: Tensors, result: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # Its threads wait for work by spinning: during a call that is theirs to do, afterwards it would disturb the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, t in inputs.items():
        binding.bind_cpu_input(name, t.numpy())
    (output,) = session.get_outputs()
    kind = result.numpy().dtype.type
    binding.bind_output(output.name, "cpu", 0, kind, list(result.shape), result.data_ptr())
    return lambda: session.run_with_iobinding(binding)


def _openvino(model: bytes, inputs: Tensors, result: Tensor) -> Callable[[], object]:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # torch's threads are not pinned either
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    request = compiled.create_infer_request()
    for name, t in inputs.items():
        request.set_tensor(name, openvino.Tensor(t.numpy(), shared_memory=True))
    request.set_output_tensor(openvino.Tensor(result.numpy(), shared_memory=True))
    return request.infer


_COMPILE = {"ONNX Runtime": _onnx_runtime, "OpenVINO": _openvino}


def engines(build: Build, then: Callable[..., Tensor] | None = None) -> tuple[Method, ...]:
    """A method for every engine that is installed; `then(result, **tensors)` is what torch does with its result."""

    def method(name: str) -> Method:
        def prepare(**tensors: Tensor) -> Callable[[], Tensor]:
            graph = Graph(tensors)
            model, result = graph.finish(build(graph))
            run = _COMPILE[name](model, graph.inputs, result)

            def call() -> Tensor:
                run()
                return result if then is None else then(result, **tensors)

            return call

        return Method(name, "engine", prepare, prepared=True)

    return tuple(map(method, installed()))
