"""Every operator on every case of its list, in every dtype, against its float64 reference."""

import pytest
import torch

from lightvl.testing.cases import OPERATORS
from lightvl.testing.compare import DTYPES, TOLERANCE, assert_close
from lightvl.testing.poison import poisoned_memory

SUMS = 4  # float32 attention sums hundreds of products


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case}")
        for name, operator in OPERATORS.items()
        for case in operator.cases
    ],
)
def test_equals_the_reference(name: str, case: object, dtype: torch.dtype) -> None:
    operator = OPERATORS[name]
    expected = operator.reference(operator.make(case, dtype))
    inputs = operator.make(case, dtype)
    with poisoned_memory():
        actual = operator.run(inputs)
    if name in ("sample", "gather_embeddings"):
        assert torch.equal(actual, expected)
    else:
        assert_close(actual, expected, TOLERANCE[dtype] * SUMS)
