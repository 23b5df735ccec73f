"""PyTorch state dicts: what torch computes is what we compute, and nothing is executed."""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.formats_samples import outputs

from sparsednn.errors import (
    FormatError,
    InputError,
    MissingDependencyError,
    ShapeError,
    UsageError,
)
from sparsednn.formats import ReadOptions, read_network, summarize_network

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta:UserWarning")

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def mlp(*widths: int, between: Any = nn.ReLU) -> Any:
    torch.manual_seed(3)
    parts: list[Any] = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        parts += [between()] if k else []
        parts.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*parts)


def forward(model: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = model.eval()(torch.from_numpy(x)).numpy()
    return result.reshape(len(x), -1)


def samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((20, *shape)).astype(np.float32)


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


# ---- what is read


@pytest.mark.parametrize(
    ("between", "option"),
    [
        (nn.ReLU, None),
        (nn.Sigmoid, "sigmoid"),
        (nn.Tanh, "tanh"),
        (nn.Identity, "identity"),
        (nn.ReLU6, "clamped_relu:6"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_forward(tmp_path: Path, between: Any, option: str | None, suffix: str) -> None:
    model = mlp(13, 11, 9, 4, between=between)
    path = saved(tmp_path / f"net{suffix}", model.state_dict())
    network = read_network(path, options=ReadOptions(activation=option))
    x = samples(13)
    np.testing.assert_allclose(outputs(network, x), forward(model, x), **CLOSE)
    assert network.name == "net"
    softmax = ReadOptions(activation=option, output_activation="softmax")
    expected = forward(nn.Sequential(model, nn.Softmax(1)), x)
    np.testing.assert_allclose(outputs(read_network(path, options=softmax), x), expected, **CLOSE)


def test_ten_and_more_layers_keep_their_order(tmp_path: Path) -> None:
    model = mlp(*[6] * 14)
    network = read_network(saved(tmp_path / "net.pt", model.state_dict()))
    assert len(network) == 13
    np.testing.assert_allclose(
        outputs(network, samples(6)), forward(model, samples(6)), rtol=1e-3, atol=1e-5
    )
    assert read_network(tmp_path / "net.pt", layers=2).edges == 72


@pytest.mark.parametrize("holder", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_where_state_dicts_are_found(
    tmp_path: Path, holder: str, prefix: str, zipped: bool
) -> None:
    model = mlp(5, 4, 3)
    wanted = read_network(saved(tmp_path / "plain.pt", model.state_dict()))
    state = {prefix + name: value for name, value in model.state_dict().items()}
    whole = {"epoch": 3, "best": torch.tensor(0.9), "optimizer": {"lr": 0.1}, holder: state}
    for number, value in enumerate((state, whole)):
        path = saved(tmp_path / f"{number}.pt", value, _use_new_zipfile_serialization=zipped)
        assert read_network(path).hash == wanted.hash
        assert summarize_network(path).hash == wanted.hash
        first = ReadOptions(select=("0",))  # the prefix is no part of the name
        assert read_network(path, options=first).n_in == 5


def test_one_layer_saved_alone(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    network = read_network(saved(tmp_path / "one.pt", layer.state_dict()))
    np.testing.assert_array_equal(network[0].weight.toarray(), layer.weight.detach().numpy())
    np.testing.assert_array_equal(network[0].bias, layer.bias.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: Any) -> None:
    model = mlp(7, 5, 2).to(dtype)
    network = read_network(saved(tmp_path / "net.pt", model.state_dict()))
    for layer, part in zip(network, model[::2], strict=True):
        expected = part.weight.detach().float().numpy()
        np.testing.assert_array_equal(layer.weight.toarray(), expected)
        np.testing.assert_array_equal(layer.bias, part.bias.detach().float().numpy())


def test_parameters_views_and_transposes(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4).T
    path = saved(
        tmp_path / "net.pt",
        {"fc.weight": nn.Parameter(weight), "fc.bias": torch.arange(8.0)[::2]},
    )
    network = read_network(path)
    np.testing.assert_array_equal(network[0].weight.toarray(), weight.numpy())
    np.testing.assert_array_equal(network[0].bias, [0, 2, 4, 6])
    back = read_network(path, options=ReadOptions(select=("fc",), transposed=False))
    assert back.hash == network.hash


@pytest.mark.parametrize("layout", ["coo", "doubled", "csr", "csc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_tensors(tmp_path: Path, layout: str, dtype: Any, transposed: bool) -> None:
    torch.manual_seed(1)
    dense = torch.rand(6, 9) * (torch.rand(6, 9) < 0.4)
    dense = dense.to(dtype)
    match layout:
        case "csr":
            weight = dense.to_sparse_csr()
        case "csc":
            weight = dense.to_sparse_csc()
        case "coo":
            weight = dense.to_sparse()
        case _:  # two entries at one place stand for their sum
            half = dense.to_sparse()
            indices, values = half.indices(), half.values() / 2
            weight = torch.sparse_coo_tensor(
                torch.cat([indices, indices], 1), torch.cat([values, values]), (6, 9)
            )
    path = saved(tmp_path / "net.pt", {"fc.weight": weight})
    network = read_network(path, options=ReadOptions(transposed=transposed))
    expected = (dense.T if transposed else dense).float().numpy()
    np.testing.assert_array_equal(network[0].weight.toarray(), expected)
    assert network.edges == np.count_nonzero(expected)


def test_a_sparse_tensor_keeps_its_stored_zeros(tmp_path: Path) -> None:
    weight = torch.sparse_coo_tensor([[0, 1], [1, 0]], [0.0, 2.0], (2, 2))
    assert read_network(saved(tmp_path / "net.pt", {"fc.weight": weight})).edges == 2


def test_pruning_masks_of_weights_and_biases(tmp_path: Path) -> None:
    from torch.nn.utils import prune

    model = mlp(12, 10, 6)
    for part in model[::2]:
        prune.l1_unstructured(part, "weight", amount=0.7)
        prune.random_unstructured(part, "bias", amount=0.5)
    x = samples(12)
    expected = forward(model, x)
    assert {"0.weight_orig", "0.weight_mask", "0.bias_orig"} <= set(model.state_dict())
    network = read_network(saved(tmp_path / "net.pt", model.state_dict()))
    np.testing.assert_allclose(outputs(network, x), expected, **CLOSE)
    assert [layer.nnz for layer in network] == [36, 18]
    assert [int(np.count_nonzero(layer.bias)) for layer in network] == [5, 3]


# ---- convolutions


class Net(nn.Module):  # type: ignore[misc]
    """Strides, groups, depthwise, no bias, then two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(8 * 4 * 3, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x).flatten(1))


def test_convolutions_as_whole_matrices(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.6)
    path = saved(tmp_path / "net.pt", model.state_dict())
    options = ReadOptions.parse(input_size="9x8", conv_padding="1,0,same", conv_stride="1,2,1")
    network = read_network(path, options=options)
    x = samples(2, 9, 8)
    np.testing.assert_allclose(outputs(network, x), forward(model, x), rtol=1e-3, atol=1e-5)
    assert [layer.shape for layer in network][:3] == [(288, 144), (96, 288), (96, 96)]
    assert read_network(path, layers=1, options=options).edges == network[0].nnz
    same = ReadOptions.parse(input_size="2x9x8", conv_padding="1,0,same", conv_stride="1,2,1")
    assert read_network(path, options=same).hash == network.hash


def test_groups_of_the_first_convolution(tmp_path: Path) -> None:
    model = nn.Conv2d(6, 6, 3, groups=3)
    path = saved(tmp_path / "net.pt", model.state_dict())
    network = read_network(path, options=ReadOptions(input_size=(6, 5, 7)))
    x = samples(6, 5, 7)
    np.testing.assert_allclose(outputs(network, x), forward(model, x), **CLOSE)
    # Height and width alone: one group is all that can be taken for granted.
    assert read_network(path, options=ReadOptions(input_size=(5, 7))).n_in == 2 * 5 * 7


def test_a_masked_convolution(tmp_path: Path) -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    x = samples(1, 6, 6)
    expected = forward(model, x)
    path = saved(tmp_path / "net.pt", model.state_dict())
    network = read_network(path, options=ReadOptions(input_size=(6, 6)))
    np.testing.assert_allclose(outputs(network, x), expected, **CLOSE)
    kernel = read_network(path, options=ReadOptions(conv="matrix"))
    wanted = model[0].weight.detach().numpy().reshape(3, 9)
    np.testing.assert_array_equal(kernel[0].weight.toarray(), wanted)
    np.testing.assert_array_equal(kernel[0].bias, model[0].bias.detach().numpy())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, FormatError, r"tensor 'features.0.weight' is F32 \[4, 2, 3, 3\]; .*--input-size HxW"),
        (
            {"input_size": "9x8"},
            ShapeError,
            r"layer 3 has shape \(48, 160\) \('features.4.weight'\), layer 4 has shape \(12, 96\) "
            r"\('head.0.weight'\): 48 outputs do not fit 96 inputs; .* 8×3×2; pooling in between",
        ),
        ({"input_size": "2x2"}, ShapeError, "layer 1 .'features.0'.: kernel 3×3 is larger than"),
        ({"input_size": "5x9x8"}, ShapeError, "layer 1 .*takes 2 channels, the image 5×9×8 has 5"),
        (
            {"input_size": "9x8", "conv_padding": "1,0"},
            UsageError,
            "--conv-padding has 2 values for 3 convolutions",
        ),
        (
            {"input_size": "9x8", "conv_stride": "2", "conv_padding": "same"},
            UsageError,
            "--conv-padding same needs stride 1, found 2",
        ),
        (
            {"input_size": "9x8", "select": ("head.*",)},
            UsageError,
            "--input-size does not apply: no layer is a convolution",
        ),
        ({"conv": "matrix", "select": ("head.*",)}, UsageError, "--conv does not apply"),
        (
            {"input_size": "9x8", "select": ("head.0", "features.0")},
            ShapeError,
            r"layer 2 \('features.0'\): a convolution behind a fully connected layer",
        ),
        (
            {"input_size": "9x8", "transposed": True, "select": ("features.0",)},
            UsageError,
            "--transposed does not apply",
        ),
        (
            {"conv": "matrix"},
            ShapeError,
            r"layer 1 has shape \(4, 18\) \('features.0.weight'\), layer 2 has shape \(8, 18\)",
        ),
    ],
)  # fmt: skip
def test_convolutions_that_do_not_fit(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = saved(tmp_path / "net.pt", Net().state_dict())
    with pytest.raises(error, match=message) as caught:
        read_network(path, options=ReadOptions.parse(**options))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- what is not read


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["inside", "bare", "old"])
def test_nothing_is_executed(tmp_path: Path, how: str) -> None:
    trap, path = Trap(tmp_path / "executed"), tmp_path / "evil.pt"
    if how == "bare":
        path.write_bytes(pickle.dumps(trap))
    else:
        content = {"fc.weight": torch.ones(2, 2), "x": trap}
        saved(path, content, _use_new_zipfile_serialization=how == "inside")
    with pytest.raises(FormatError, match=r"evil\.pt: not a ") as caught:
        read_network(path)
    assert "\n" not in str(caught.value)
    assert not trap.path.exists()


def test_other_things_in_such_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {3: torch.ones(2, 2), "a.weight": torch.ones(2, 2)})
    with pytest.raises(FormatError, match=r"net\.pt: no state dict: a name is of type int, not st"):
        read_network(path)
    advice = r"in PyTorch: torch.save\(model.state_dict\(\), 'model.pt'\)"
    for content, message in (
        (mlp(3, 2), r"holds Python objects \(torch.nn.modules.container.Sequential\)"),
        ([torch.ones(2)], "no state dict: it holds a list"),
        (torch.ones(2, 2), "no state dict: it holds a Tensor"),
        ({}, r"a dict without tensors \(nothing\)"),
        ({"epoch": 1, "loss": 0.5}, r"a dict without tensors \('epoch', 'loss'\)"),
        ({"state_dict": {"a": 1}}, r"a dict without tensors \('a'\)"),
        (
            {"model": {"a.weight": torch.ones(1, 1)}, "state_dict": {}},
            "several state dicts: state_dict, model",
        ),
    ):
        with pytest.raises(FormatError, match=rf"net\.pt: .*{message}.*; {advice}"):
            read_network(saved(path, content))


def test_a_torchscript_archive(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(mlp(3, 2), torch.ones(1, 3)).save(str(path))
    with pytest.raises(FormatError, match=r"script\.pt: a TorchScript archive, not a state dict"):
        read_network(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pt"
    saved(path, mlp(4, 3).state_dict(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        # What is left of an old file may look like the pickle of something else.
        says = r"net\.pt: not a (PyTorch file, or truncated|state dict)"
        with pytest.raises(FormatError, match=says) as caught:
            read_network(path)
        assert "\n" not in str(caught.value)
    for content in (bytes(range(256)), b"hello\n", b"PK\x03\x04" + bytes(100), b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"net\.pt: (not a PyTorch file|no state dict)"):
            read_network(path)
    path.unlink()
    with pytest.raises(FormatError, match=r"net\.pt: no such file"):
        read_network(path)


def test_damaged_sparse_tensors(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        for weight in (
            torch.sparse_coo_tensor([[0, 7], [1, 0]], [1.0, 2.0], (2, 2)),
            torch.sparse_csr_tensor([0, 1, 99], [0, 1], [1.0, 2.0], (2, 2)),
        ):
            saved(path, {"fc.weight": weight})
            with pytest.raises((FormatError, ShapeError), match=r"net\.pt: "):
                read_network(path)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"fc.weight": torch.ones(2, 2, dtype=torch.int64)}, FormatError, r"I64 \[2, 2\]; only fu"),
        ({"fc.weight": torch.ones(2, 2, dtype=torch.cfloat)}, FormatError, r"complex64 \[2, 2\]"),
        ({"fc.weight": torch.ones(0, 2)}, FormatError, r"F32 \[0, 2\]"),
        ({"fc.weight": torch.ones(2, 2, device="meta")}, FormatError, "without values"),
        ({"fc.weight": torch.ones(2, 2), "_extra_state": 3}, FormatError, "'_extra_state' belongs"),
        (
            {"a.weight": torch.tensor([[1.0, float("nan")]])},
            InputError,
            r"net\.pt: layer 1 \('a'\): weight \(0, 1\) is nan",
        ),
        (
            {"a.weight": torch.ones(1, 2), "a.bias": torch.tensor([float("inf")])},
            InputError,
            r"layer 1 \('a'\): bias of row 0 is inf",
        ),
        (
            {"a.weight": torch.ones(1, 2), "a.bias": torch.ones(2)},
            FormatError,
            r"'a.bias' is F32 \[2\], expected F16 or BF16 or F32 or F64 \[1\]",
        ),
        (
            {"a.weight_orig": torch.ones(2, 2), "a.weight_mask": torch.ones(2)},
            FormatError,
            r"'a.weight_mask' is F32 \[2\], but 'a.weight_orig' is F32 \[2, 2\]",
        ),
        (
            {"a.weight_mask": torch.ones(2, 2), "b.weight": torch.ones(2, 2)},
            FormatError,
            "no tensor 'a.weight_orig' beside 'a.weight_mask'",
        ),
        (
            {
                "a.weight": torch.ones(2, 2),
                "a.weight_orig": torch.ones(2, 2),
                "a.weight_mask": torch.ones(2, 2),
            },
            FormatError,
            "both 'a.weight' and 'a.weight_orig' are there",
        ),
    ],
)  # fmt: skip
def test_state_dicts_that_are_no_network(
    tmp_path: Path, state: Any, error: type[Exception], message: str
) -> None:
    path = saved(tmp_path / "net.pt", state)
    with pytest.raises(error, match=message) as caught:
        read_network(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta:UserWarning")
def test_sparse_tensors_of_blocks(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"fc.weight": torch.ones(4, 4).to_sparse_bsr((2, 2))})
    with pytest.raises(FormatError, match=r"'fc.weight' has layout torch.sparse_bsr; .* CSC"):
        read_network(path)


def test_parametrizations(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    path = saved(tmp_path / "net.pt", model.state_dict())
    message = r"'0.parametrizations.weight.original0' is a parametrization.*\(module, 'weight'\)"
    with pytest.raises(FormatError, match=message):
        read_network(path)
    assert read_network(path, options=ReadOptions(select=("1",))).edges == 4


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "net.pt", mlp(3, 2).state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.9.1+cu128")
        with pytest.raises(MissingDependencyError, match=r"may execute code .* 'torch>=2\.10'"):
            read_network(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"net\.pt: .* pip install torch$"):
        read_network(path)


def test_biases_are_inside(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", mlp(3, 2).state_dict())
    with pytest.raises(UsageError, match="has its biases inside"):
        read_network(path, bias=-1.0)
