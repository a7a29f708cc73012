"""The fused operations of training against their references, forward and backward, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tallow.kernels import cpu, fused
from tallow.kernels.cpu import training
from tallow.kernels.dispatch import using
from tallow.kernels.fused import IGNORED

EXTENSION = cpu.native()
NAMES: list[str] = EXTENSION.operation_sets() if EXTENSION else []
pytestmark = pytest.mark.skipif(EXTENSION is None, reason="installed without the C++ extension")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# a result of bfloat16 is rounded once, the reference's several times
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.02}


@pytest.fixture(params=NAMES, autouse=True)
def _instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "operation_set", lambda: request.param)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def results(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What an operation gives, and its gradients by all floating-point inputs towards a random direction."""
    wanted = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    out = work(*wanted)
    outer = random(*out.shape, seed=9, dtype=out.dtype) if out.dim() else torch.ones_like(out)
    by_input = torch.autograd.grad(out, [x for x in wanted if x.requires_grad], outer)
    return [out.detach(), *by_input]


def assert_alike(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    with using("fast"):
        fast = results(work, inputs)
        assert _is_fast(work, inputs)
    with using("reference"):
        reference = results(work, [x.double() if x.dtype == torch.float32 else x for x in inputs])
    tolerance = TOLERANCE[inputs[0].dtype]
    for ours, theirs in zip(fast, reference, strict=True):
        assert ours.shape == theirs.shape
        size = theirs.abs().max().clamp(min=1).item()
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * size)


def _is_fast(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    function = work(*[x.detach().requires_grad_(x.is_floating_point()) for x in inputs]).grad_fn
    return function is not None and type(function).__name__.startswith("_")


@DTYPES
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 5), size=st.integers(2, 70), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 3.0, 40.0])
)
def test_cross_entropy(dtype: torch.dtype, rows: int, size: int, seed: int, scale: float) -> None:
    targets_N = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(seed))
    targets_N[seed % rows] = IGNORED if seed % 3 == 0 else 0
    logits_NV = random(rows, size, seed=seed, dtype=dtype, scale=scale)
    assert_alike(lambda x: fused.cross_entropy(x, targets_N), [logits_NV])


def test_losses_of_logits_that_are_no_numbers_are_none() -> None:
    targets_N = torch.tensor([0, 1, 2])
    for bad in (float("nan"), float("inf")):
        logits_NV = random(3, 40, seed=0)
        logits_NV[1, 30] = bad
        with using("fast"):
            assert fused.cross_entropy(logits_NV, targets_N).isnan()
    logits_NV = random(3, 40, seed=0)
    logits_NV[:, 5:] = float("-inf")  # tokens that cannot be
    with using("fast"):
        assert fused.cross_entropy(logits_NV, targets_N).isfinite()


def test_targets_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(IndexError):
        fused.cross_entropy(random(2, 8, seed=0), torch.tensor([0, 8]))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 70), seed=st.integers(0, 99))
def test_rms_norm(rows: int, size: int, seed: int) -> None:
    x, weight_D = random(2, rows, size, seed=seed), random(size, seed=seed + 1)
    assert_alike(lambda x, weight: fused.rms_norm(x, weight, 0.01), [x, weight_D])


def test_rms_norm_rounds_what_it_gives_and_nothing_else() -> None:
    x, weight_D = random(2, 30, 70, seed=0), random(70, seed=1)
    with using("fast"):
        assert fused.rms_norm(x, weight_D, 0.01, torch.float16).dtype == torch.float16  # by the reference
        rounded = results(lambda x, weight: fused.rms_norm(x, weight, 0.01, torch.bfloat16), [x, weight_D])
        later = results(lambda x, weight: fused.rms_norm(x, weight, 0.01).bfloat16(), [x, weight_D])
    assert [found.dtype for found in rounded] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.equal(*both) for both in zip(rounded, later, strict=True))


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(3, 7), (5, 4096 + 33)])
def test_gate(dtype: torch.dtype, activation: fused.Activation, shape: tuple[int, int]) -> None:
    inputs = [random(*shape, seed=seed, dtype=dtype, scale=4.0) for seed in range(2)]
    assert_alike(lambda gate, up: fused.gate(gate, up, activation), inputs)


@DTYPES
@pytest.mark.parametrize(("size", "half"), [(64, 32), (80, 10), (24, 12)])
@pytest.mark.parametrize("rows", [1, 3])
def test_rotate(dtype: torch.dtype, size: int, half: int, rows: int) -> None:
    angles_B1Tr = random(rows, 1, 9, half, seed=3, scale=5.0)
    x_BTHd = random(3, 9, 4, size, seed=4, dtype=dtype)

    def work(x_BTHd: Tensor) -> Tensor:
        return fused.rotate(x_BTHd.transpose(1, 2), angles_B1Tr.cos(), angles_B1Tr.sin())

    assert_alike(work, [x_BTHd])


def test_threads_change_nothing_but_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight_D = random(700, 64, seed=0), random(64, seed=1)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(training, "num_threads", lambda threads=threads: threads)
        with using("fast"):
            found.append(results(lambda x, weight: fused.rms_norm(x, weight, 1e-5), [x, weight_D]))
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])
        torch.testing.assert_close(found[0][2], other[2], rtol=0, atol=1e-4)


def test_what_is_not_plain_memory_goes_to_the_reference() -> None:
    class Shared(Tensor):
        """As distributed tensors are: what lies here is not all of it."""

    x = random(4, 8, seed=0)
    weight = nn.Parameter(torch.ones(8))
    assert training.rms_norm(x.as_subclass(Shared), weight, 1e-5) is None
    assert training.rms_norm(x.t(), weight, 1e-5) is None
    assert training.gate(x, x.bfloat16(), "silu") is None
