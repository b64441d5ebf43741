"""The kernels of log-probs against torch's own log-softmax."""

import pytest
import torch
from torch.nn import functional as F

from iris_ray.learner.kernels.label_logprobs import label_logprobs

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def drawn(rows: int, size: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(size, (rows,), generator=generator)


@DTYPES
@pytest.mark.parametrize("size", [1, 15, 16, 100, 4097])
@pytest.mark.parametrize("scaling", [1.0, 0.7])
def test_values_and_gradients_are_those_of_torch(dtype, size, scaling) -> None:
    logits, labels = drawn(37, size, dtype)
    weights = torch.linspace(-1, 1, 37, dtype=torch.float64)
    mine, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found, logsums = label_logprobs(mine, labels, scaling)
    expected = F.log_softmax(scaling * theirs, -1)[range(37), labels]
    wide = torch.promote_types(dtype, torch.float32)
    assert found.dtype == logsums.dtype == wide
    rounding = 40 * torch.finfo(wide).eps  # of logits up to 20
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding)
    torch.testing.assert_close(logsums.double(), (scaling * theirs).logsumexp(-1), rtol=0, atol=rounding)
    (found.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert mine.grad.dtype == dtype
    torch.testing.assert_close(
        mine.grad.double(), theirs.grad, rtol=max(rounding, torch.finfo(dtype).eps), atol=rounding
    )


@DTYPES
def test_logits_may_be_of_any_height(dtype) -> None:
    logits, labels = drawn(8, 50, dtype)
    for height in (-1e4, 1e4):
        found, _ = label_logprobs(logits + height, labels, 1.0)
        expected = F.log_softmax((logits + height).double(), -1)[range(8), labels]
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-3)
    found, _ = label_logprobs(logits.index_fill(1, (labels[0] + 1) % 50, -torch.inf), labels, 1.0)
    assert found[0].isfinite()


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(spoilt) -> None:
    logits, labels = drawn(2, 40, torch.float32)
    logits[1, 39] = spoilt
    logits.requires_grad_()
    found, _ = label_logprobs(logits, labels, 1.0)
    assert found[0].isfinite()
    assert found[1].isnan()
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].isfinite().all()
    assert logits.grad[1].isnan().any()


@DTYPES
def test_torch_takes_it_for_an_operator_of_its_own(dtype) -> None:
    logits, labels = drawn(5, 33, dtype)
    torch.library.opcheck(label_logprobs, (logits.requires_grad_(), labels, 0.5))


def test_tensors_may_lie_anyhow() -> None:
    logits, labels = drawn(500, 33, torch.float32)
    across, apart = logits.t().contiguous().t(), torch.stack([labels, -labels], 1)[:, 0]
    assert torch.equal(label_logprobs(across, apart, 0.5)[0], label_logprobs(logits, labels, 0.5)[0])
