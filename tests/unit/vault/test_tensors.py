from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.tensors import DTYPE_NAMES, GATHER_BYTES, decode, encode

DTYPES = [getattr(torch, name.removeprefix("torch.")) for name in DTYPE_NAMES]


def file_of(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(encode(tensors))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        one, other = (it.contiguous().reshape(-1).view(torch.uint8) for it in (found[name], tensor))
        assert torch.equal(one, other), name  # bits, so that NaN equals itself


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(5).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.empty(0, 3).to(dtype),
    }
    (tmp_path / "it").write_bytes(file_of(tensors))
    assert_same(decode(tmp_path / "it"), tensors)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 2**31)),
        max_size=6,
    )
)
def test_any_mixture_comes_back_and_order_does_not_matter(
    recipes: dict[str, tuple[torch.dtype, list[int], int]],
) -> None:
    tensors = {
        name: torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype)
        for name, (dtype, shape, seed) in recipes.items()
    }
    data = file_of(tensors)
    assert_same(load(data), tensors)
    assert file_of(dict(reversed(tensors.items()))) == data


def test_strides_do_not_matter(tmp_path: Path) -> None:
    plain = torch.rand(2, 3, 4, 5)
    strided = torch.rand(7, 6)[::2, ::3]
    tensors = {
        "plain": plain,
        "channels_last": plain.to(memory_format=torch.channels_last),
        "transposed": torch.rand(4, 5).T,
        "strided": strided,
        "expanded": torch.rand(1, 3).expand(4, 3),
        "grad": torch.rand(3, requires_grad=True),
    }
    (tmp_path / "it").write_bytes(file_of(tensors))
    found = decode(tmp_path / "it")
    assert_same(found, {name: tensor.detach() for name, tensor in tensors.items()})
    assert file_of({name: tensor.contiguous() for name, tensor in tensors.items()}) == file_of(tensors)
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_nan_payloads_and_negative_zero_survive() -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000], dtype=torch.int32)
    assert torch.equal(load(file_of({"it": bits.view(torch.float32)}))["it"].view(torch.int32), bits)


def test_big_tensors_are_not_copied_and_small_ones_are_gathered() -> None:
    big = torch.zeros(GATHER_BYTES, dtype=torch.uint8)
    small = {f"small{n}": torch.zeros(1) for n in range(100)}
    pieces = list(encode({"big": big, **small}))
    assert len(pieces) == 2
    big[0] = 7
    assert pieces[-1][0] == 7, "the piece is a copy"


def test_tensors_start_at_multiples_of_their_element_size(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(3), "c": torch.zeros(3, dtype=torch.float64)}
    (tmp_path / "it").write_bytes(file_of(tensors))
    with safe_open(tmp_path / "it", "pt") as file:
        assert list(file.offset_keys()) == ["c", "b", "a"]


def test_what_cannot_be_stored() -> None:
    with pytest.raises(UserError, match=r"torch\.complex64"):
        file_of({"it": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(UserError, match="on meta"):
        file_of({"it": torch.zeros(1, device="meta")})
    with pytest.raises(UserError, match="__metadata__"):
        file_of({"__metadata__": torch.zeros(1)})


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"not tensors at all")
    with pytest.raises(DataLoss, match="cannot be read as tensors"):
        decode(tmp_path / "it")
    with pytest.raises(DataLoss, match="cannot be read as tensors"):
        decode(tmp_path / "absent")
