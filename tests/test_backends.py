"""The backend table, use_backend, and the command line that reports them."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

import fcn_kernels
from fcn_kernels import _library, backends, cli, reference, use_backend
from fcn_kernels.backends import preferences
from fcn_kernels.backends import triton as triton_backend

SAMPLING = fcn_kernels.Sampling.transposed_conv((4, 5), 2)


def forward_and_backward():
    x = torch.linspace(-1, 1, 40, requires_grad=True).reshape(1, 2, 4, 5)
    y = fcn_kernels.upsample(x, SAMPLING)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y, gradient


@pytest.fixture
def calls(monkeypatch):
    """The names of the reference functions that were called."""
    names = []
    for op in backends.operators():
        original = getattr(reference, op)

        def spy(*args, _op=op, _original=original, **kwargs):
            names.append(_op)
            return _original(*args, **kwargs)

        monkeypatch.setattr(reference, op, spy)
    return names


def test_every_operator_has_a_reference():
    assert "upsample_cross_entropy" in backends.operators()
    missing = [op for op in backends.operators() if not hasattr(reference, op)]
    assert not missing


def test_unknown_name():
    message = "use_backend: 'gpu' is none of the backends reference, cpu, cuda, triton"
    with pytest.raises(ValueError, match=message), use_backend("gpu"):
        pass


def test_reference_serves_forward_and_backward(calls):
    with use_backend("reference"):
        y, gradient = forward_and_backward()
    assert calls == ["upsample", "upsample_backward"]
    expected, expected_gradient = forward_and_backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_outside_the_context_the_table_decides_again(calls):
    with use_backend("reference"):
        forward_and_backward()
    calls.clear()
    forward_and_backward()
    assert not calls  # the dispatcher holds the functions themselves, not the names that the spies replaced


@pytest.mark.skipif(backends.active("upsample", "cpu") != "cpu", reason="there is no C++ kernel")
def test_the_innermost_context_decides(calls):
    with use_backend("reference"), use_backend("cpu"):
        forward_and_backward()
    assert not calls
    with use_backend("cpu"), use_backend("reference"):
        forward_and_backward()
    assert calls == ["upsample", "upsample_backward"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cuda", "it reads CUDA tensors only"), ("triton", "it reads CPU tensors only in its interpreter")],
)
def test_a_backend_that_cannot_serve_says_why(name, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend(name), pytest.raises(RuntimeError, match=f"{name}.*upsample on cpu tensors: {reason}"):
        fcn_kernels.upsample(torch.zeros(1, 1, 4, 5), SAMPLING)


def test_other_operators_pass():
    with use_backend("cuda"):
        assert torch.ones(3).sum() == 3


def test_fake_tensors_pass():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(), use_backend("cuda"):
        assert fcn_kernels.upsample(torch.empty(1, 1, 4, 5), SAMPLING).shape == (1, 1, *SAMPLING.output_size)


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps"])
@pytest.mark.parametrize("dtype", backends.DTYPES, ids=str)
def test_every_operator_is_served_everywhere(device, dtype):
    for op in backends.operators():
        found = backends.candidates(op, device, dtype)
        assert sorted(c.backend for c in found) == sorted(backends.BACKENDS)
        assert all(c.reason is None or len(c.reason) > 5 for c in found)
        assert backends.active(op, device, dtype) is not None


def test_the_table_agrees_with_the_dispatcher():
    for op in backends.operators():
        for device in ("cpu", "cuda", "xpu"):
            has = torch._C._dispatch_has_kernel_for_dispatch_key(f"fcn_kernels::{op}", device.upper())
            assert has == (backends.active(op, device) != "reference"), (op, device)


def test_measurements_decide_on_nvidia_gpus(monkeypatch, capsys):
    monkeypatch.setattr(preferences, "SOURCE", "results/gpu.json")
    monkeypatch.setattr(preferences, "GPU", "some GPU")
    monkeypatch.setattr(preferences, "FASTER", {"upsample": ("triton", 1.3), "upsample_add": ("cuda", 2.0)})
    notes = {op: backends.candidates(op, "cuda")[0] for op in ("upsample", "upsample_add", "upsample_softmax")}
    assert {op: c.backend for op, c in notes.items()} == {
        "upsample": "triton",
        "upsample_add": "cuda",
        "upsample_softmax": "cuda",
    }
    assert notes["upsample"].note == "Triton measured 1.30x as fast as CUDA C++ (some GPU, results/gpu.json)"
    assert notes["upsample_add"].note == "CUDA C++ measured 2.00x as fast as Triton (some GPU, results/gpu.json)"
    assert notes["upsample_softmax"].note == "not yet measured: CUDA C++ by convention"
    for device in ("cpu", "xpu"):
        assert [c.note for c in backends.candidates("upsample", device)] == [None] * 4
    assert next(c.backend for c in backends.candidates("upsample", "xpu")) == "cuda"
    assert cli.main(["info"]) == 0
    assert (
        "Triton measured 1.30x as fast as CUDA C++ (some GPU, results/gpu.json) (upsample)" in capsys.readouterr().out
    )


@pytest.mark.skipif(backends.active("upsample", "cpu") != "cpu", reason="there is no C++ kernel")
def test_triton_in_the_place_of_a_cpp_kernel():
    """On the dispatch key CPU, so that no GPU is needed: the dispatcher reaches Triton, and by name C++ too."""
    pytest.importorskip("triton")
    program = """
import warnings; warnings.simplefilter("error")
import torch, fcn_kernels as fk
from fcn_kernels import backends
backends.triton.lazy = lambda op: lambda x, sampling: x + 41
backends._give_to_triton("upsample", "CPU")
x = torch.ones(1, 1, 2, 2)
print(int(fk.upsample(x, (2, 2)).sum()), backends._has_cpp_kernel("upsample", "CPU"))
with fk.use_backend("cpu"):
    print(int(fk.upsample(x, (2, 2)).sum()))
y = x.requires_grad_()
with fk.use_backend("cpu"):
    print(int(torch.autograd.grad(fk.upsample(y, (2, 2)).sum(), y)[0].sum()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["168", "True", "4", "4"], done.stderr


def test_triton_kernels_are_operators():
    pytest.importorskip("triton")
    assert set(triton_backend.KERNELS) <= set(backends.operators())
    for op, module in triton_backend.KERNELS.items():
        assert callable(getattr(importlib.import_module(f"{triton_backend.__name__}.{module}"), op))


def test_backward_of():
    assert backends.backward_of("upsample") == "upsample_backward"
    assert backends.backward_of("upsample_add") == "upsample_backward"
    assert backends.backward_of("conv_transpose_concat") == "conv_transpose_add_backward"
    assert backends.backward_of("upsample_argmax") is None


def test_info_prints_tables(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    for op in backends.operators():
        if not op.endswith("_backward"):
            assert op in text
    assert "cpu         available" in text
    assert "interpreter (TRITON_INTERPRET=1)" in text or "triton is not installed" in text


def test_info_json_is_complete(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {d["device"] for d in facts["devices"]} == {"cpu", "cuda", "xpu"}
    rows = {(r["operator"], r["direction"], r["device"], r["dtype"]): r for r in facts["operators"]}
    forward = [op for op in backends.operators() if not op.endswith("_backward")]
    assert len(rows) == len(forward) * 2 * 3 * len(backends.DTYPES)
    row = rows["upsample_add", "backward", "cpu", "bfloat16"]
    assert row["kernel"] == "upsample_backward"
    assert row["active"] == backends.active("upsample_backward", "cpu", torch.bfloat16)
    assert row["unable"]["cuda"] == "it reads CUDA tensors only"


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["info", "--no-such-option"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: fcn-kernels" in capsys.readouterr().err


def test_commands_load_only_what_they_need():
    program = (
        "import sys; from fcn_kernels.cli import main; main(['info']); print('fcn_kernels.cli.bench' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(_library.load_extension() is None, reason="the package was installed without compiled kernels")
@pytest.mark.parametrize("dtype", backends.DTYPES, ids=lambda d: str(d)[6:])
def test_every_operator_has_a_cpp_kernel(dtype):
    """Forward and backward: nobody meets the reference by accident on the CPU."""
    assert {op: backends.active(op, "cpu", dtype) for op in backends.operators()} == dict.fromkeys(
        backends.operators(), "cpu"
    )
