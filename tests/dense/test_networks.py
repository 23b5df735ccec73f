"""The networks by name, against the same networks written in PyTorch here.

torchvision is not needed: its networks' structures are written down again below, as
``torch.nn.Sequential`` and the like, with its names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import NETWORKS, make_network
from sparsednn.dense.networks.pathnet import pathnet
from sparsednn.dense.operations import (
    Add,
    MaxPool,
)
from sparsednn.dense.state_dict import to_torch
from sparsednn.errors import ShapeError, UnknownNameError
from torch_graphs import run

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


# -- the same networks in PyTorch ------------------------------------------------------------------


class Named(nn.Module):
    """Modules by name that run in order, flattened in front of the first Linear."""

    def __init__(self, **modules: Any) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
        return x


def relu() -> Any:
    return nn.ReLU()


def smallcnn() -> Any:
    return Named(
        conv1=nn.Conv2d(1, 4, 3, padding=1), r1=relu(),
        conv2=nn.Conv2d(4, 8, 3, padding=1), r2=relu(), pool=nn.MaxPool2d(2),
        fc1=nn.Linear(8 * 14 * 14, 128), r3=relu(), fc2=nn.Linear(128, 10),
    )  # fmt: skip


def lenet5() -> Any:
    return Named(
        conv1=nn.Conv2d(1, 6, 5, padding=2), r1=relu(), p1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5), r2=relu(), p2=nn.MaxPool2d(2),
        fc1=nn.Linear(400, 120), r3=relu(), fc2=nn.Linear(120, 84), r4=relu(),
        fc3=nn.Linear(84, 10),
    )  # fmt: skip


class Features(nn.Module):
    """`features` and `classifier`, as AlexNet and VGG have it."""

    def __init__(self, features: list[Any], classifier: list[Any]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).flatten(1))


def alexnet(size: int, classes: int) -> Any:
    if size >= 64:
        features = [
            nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), relu(), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
    else:
        features = [
            nn.Conv2d(3, 64, 3, stride=2, padding=1), relu(), nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1), relu(), nn.MaxPool2d(2),
        ]  # fmt: skip
    for c, k in ((192, 384), (384, 256), (256, 256)):
        features += [nn.Conv2d(c, k, 3, padding=1), relu()]
    features += [nn.MaxPool2d(3, 2) if size >= 64 else nn.MaxPool2d(2)]
    area = {224: 36, 64: 1, 32: 4}[size]
    return Features(
        features,
        [
            nn.Dropout(), nn.Linear(256 * area, 4096), relu(),
            nn.Dropout(), nn.Linear(4096, 4096), relu(), nn.Linear(4096, classes),
        ],
    )  # fmt: skip


def vgg16(size: int, classes: int) -> Any:
    features: list[Any] = []
    channels = 3
    for k in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if k:
            features += [nn.Conv2d(channels, k, 3, padding=1), relu()]
            channels = k
        else:
            features.append(nn.MaxPool2d(2, 2))
    area, drop = (size // 32) ** 2, nn.Dropout
    if size >= 64:
        classifier = [
            nn.Linear(512 * area, 4096), relu(), drop(), nn.Linear(4096, 4096), relu(), drop(),
            nn.Linear(4096, classes),
        ]  # fmt: skip
    else:
        classifier = [
            drop(), nn.Linear(512, 512), relu(), drop(), nn.Linear(512, 512), relu(),
            nn.Linear(512, classes),
        ]  # fmt: skip
    return Features(features, classifier)


class Block(nn.Module):
    """torchvision's BasicBlock (`wide` 1) and Bottleneck (`wide` 4)."""

    def __init__(self, c: int, k: int, stride: int, wide: int) -> None:
        super().__init__()
        out = k * wide
        if wide == 1:
            self.conv1 = nn.Conv2d(c, k, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(k)
            self.conv2 = nn.Conv2d(k, k, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(k)
        else:
            self.conv1 = nn.Conv2d(c, k, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(k)
            self.conv2 = nn.Conv2d(k, k, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(k)
            self.conv3 = nn.Conv2d(k, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.wide = wide
        self.downsample = None
        if stride != 1 or c != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.wide > 1:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, width: int, blocks: Any, wide: int, stem: int, classes: int) -> None:
        super().__init__()
        taps = stem
        self.conv1 = nn.Conv2d(3, width, taps, 2 if taps == 7 else 1, taps // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if taps == 7 else nn.Identity()
        channels = width
        self.stages = []
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                k = width << stage
                layers.append(Block(channels, k, 2 if stage and not block else 1, wide))
                channels = k * wide
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean((2, 3)))


class BasicConv2d(nn.Module):
    def __init__(self, c: int, k: int, **window: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, k, bias=False, **window)
        self.bn = nn.BatchNorm2d(k, eps=0.001)

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, c: int, k1: int, k3a: int, k3: int, k5a: int, k5: int, kp: int) -> None:
        super().__init__()
        conv = BasicConv2d
        self.branch1 = conv(c, k1, kernel_size=1)
        self.branch2 = nn.Sequential(
            conv(c, k3a, kernel_size=1), conv(k3a, k3, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            conv(c, k5a, kernel_size=1), conv(k5a, k5, kernel_size=3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv(c, kp, kernel_size=1)
        )

    def forward(self, x: Any) -> Any:
        branches = self.branch1, self.branch2, self.branch3, self.branch4
        return torch.cat([branch(x) for branch in branches], 1)


class GoogLeNet(nn.Module):
    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        conv = BasicConv2d
        if size >= 64:
            self.conv1 = conv(3, 64, kernel_size=7, stride=2, padding=3)
            self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.conv2 = conv(64, 64, kernel_size=1)
            self.conv3 = conv(64, 192, kernel_size=3, padding=1)
            self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        else:
            self.conv1 = conv(3, 192, kernel_size=3, padding=1)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
        return x


class Mixed(nn.Module):
    """An Inception-v3 module: branches of convolutions, and one of a pool.

    `branches` has the names in each; those in a tuple stand side by side. `convolutions` has
    filters, taps and stride of each, in the order of the state dict.
    """

    def __init__(self, c: int, pool: str, branches: list[list[Any]], **convolutions: Any) -> None:
        super().__init__()
        self.pool, self.branches = pool, branches
        starts = {"branch_pool", *(branch[0] for branch in branches)}
        channels = c
        for name, (k, taps, stride) in convolutions.items():
            channels = c if name in starts else channels
            pads = 0 if stride > 1 else (taps[0] // 2, taps[1] // 2)
            conv = BasicConv2d(channels, k, kernel_size=taps, stride=stride, padding=pads)
            self.add_module(name, conv)
            channels = k

    def forward(self, x: Any) -> Any:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, tuple):
                    y = torch.cat([getattr(self, side)(y) for side in step], 1)
                else:
                    y = getattr(self, step)(y)
            outputs.append(y)
        if self.pool == "max":
            outputs.append(F.max_pool2d(x, 3, 2))
        else:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1)))
        return torch.cat(outputs, 1)


def mixed_a(c: int, pool: int) -> Any:
    return Mixed(
        c, "mean",
        [["branch1x1"], ["branch5x5_1", "branch5x5_2"],
         ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]],
        branch1x1=(64, (1, 1), 1), branch5x5_1=(48, (1, 1), 1), branch5x5_2=(64, (5, 5), 1),
        branch3x3dbl_1=(64, (1, 1), 1), branch3x3dbl_2=(96, (3, 3), 1),
        branch3x3dbl_3=(96, (3, 3), 1), branch_pool=(pool, (1, 1), 1),
    )  # fmt: skip


def mixed_b(c: int) -> Any:
    return Mixed(
        c, "max", [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]],
        branch3x3=(384, (3, 3), 2), branch3x3dbl_1=(64, (1, 1), 1),
        branch3x3dbl_2=(96, (3, 3), 1), branch3x3dbl_3=(96, (3, 3), 2),
    )  # fmt: skip


def mixed_c(c: int, k: int) -> Any:
    row, column = (1, 7), (7, 1)
    return Mixed(
        c, "mean",
        [["branch1x1"], [f"branch7x7_{n}" for n in (1, 2, 3)],
         [f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5)]],
        branch1x1=(192, (1, 1), 1), branch7x7_1=(k, (1, 1), 1), branch7x7_2=(k, row, 1),
        branch7x7_3=(192, column, 1), branch7x7dbl_1=(k, (1, 1), 1),
        branch7x7dbl_2=(k, column, 1), branch7x7dbl_3=(k, row, 1),
        branch7x7dbl_4=(k, column, 1), branch7x7dbl_5=(192, row, 1),
        branch_pool=(192, (1, 1), 1),
    )  # fmt: skip


def mixed_d(c: int) -> Any:
    return Mixed(
        c, "max",
        [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{n}" for n in (1, 2, 3, 4)]],
        branch3x3_1=(192, (1, 1), 1), branch3x3_2=(320, (3, 3), 2),
        branch7x7x3_1=(192, (1, 1), 1), branch7x7x3_2=(192, (1, 7), 1),
        branch7x7x3_3=(192, (7, 1), 1), branch7x7x3_4=(192, (3, 3), 2),
    )  # fmt: skip


def mixed_e(c: int) -> Any:
    return Mixed(
        c, "mean",
        [["branch1x1"], ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
         ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]],
        branch1x1=(320, (1, 1), 1), branch3x3_1=(384, (1, 1), 1),
        branch3x3_2a=(384, (1, 3), 1), branch3x3_2b=(384, (3, 1), 1),
        branch3x3dbl_1=(448, (1, 1), 1), branch3x3dbl_2=(384, (3, 3), 1),
        branch3x3dbl_3a=(384, (1, 3), 1), branch3x3dbl_3b=(384, (3, 1), 1),
        branch_pool=(192, (1, 1), 1),
    )  # fmt: skip


def inception_v3(size: int, classes: int) -> Any:
    conv, large = BasicConv2d, size >= 64
    rim = {"kernel_size": 3, "padding": 0 if large else 1}
    pools = [nn.MaxPool2d(3, 2) if large else nn.Identity() for _ in range(2)]
    return Named(
        Conv2d_1a_3x3=conv(3, 32, stride=2 if large else 1, **rim),
        Conv2d_2a_3x3=conv(32, 32, **rim), Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        maxpool1=pools[0], Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, **rim), maxpool2=pools[1],
        Mixed_5b=mixed_a(192, 32), Mixed_5c=mixed_a(256, 64), Mixed_5d=mixed_a(288, 64),
        Mixed_6a=mixed_b(288), Mixed_6b=mixed_c(768, 128), Mixed_6c=mixed_c(768, 160),
        Mixed_6d=mixed_c(768, 160), Mixed_6e=mixed_c(768, 192), Mixed_7a=mixed_d(768),
        Mixed_7b=mixed_e(1280), Mixed_7c=mixed_e(2048), avgpool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(2048, classes),
    )  # fmt: skip


class PathLayer(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        for number in range(1, 11):
            conv = nn.Conv2d(c, 32, 3, stride, 1)
            self.add_module(f"module{number}", Named(conv=conv, relu=relu()))

    def forward(self, x: Any) -> Any:
        return sum(module(x) for module in self.children())


def torch_pathnet(size: int, classes: int) -> Any:
    layers = {f"layer{k}": PathLayer(3 if k == 1 else 32, 1 if k == 1 else 2) for k in range(1, 5)}
    return Named(**layers, fc=nn.Linear(32 * (size // 8) ** 2, classes))


def torch_network(name: str, image: tuple[int, int, int], classes: int) -> Any:
    size = image[1]
    stem = 7 if size >= 64 else 3
    match name:
        case "smallcnn":
            return smallcnn()
        case "lenet5":
            return lenet5()
        case "alexnet":
            return alexnet(size, classes)
        case "vgg16":
            return vgg16(size, classes)
        case "resnet18":
            return ResNet(64, (2, 2, 2, 2), 1, stem, classes)
        case "resnet20":
            return ResNet(16, (3, 3, 3), 1, 3, classes)
        case "resnet50":
            return ResNet(64, (3, 4, 6, 3), 4, stem, classes)
        case "googlenet":
            return GoogLeNet(size, classes)
        case "inception_v3":
            return inception_v3(size, classes)
        case "pathnet":
            return torch_pathnet(size, classes)
    raise AssertionError(name)


LARGE = ("alexnet", "vgg16", "resnet18", "resnet50", "googlenet")


@pytest.mark.parametrize(
    ("name", "image"),
    [(name, None) for name in NETWORKS] + [(name, CIFAR) for name in (*LARGE, "inception_v3")],
)
def test_parameters_have_pytorchs_names_order_and_shapes(name: str, image: Any) -> None:
    graph = make_network(name, image)
    with torch.device("meta"):
        theirs = torch_network(name, graph.image, graph.classes).state_dict()
    expected = {
        key: tuple(value.shape)
        for key, value in theirs.items()
        if not key.endswith("num_batches_tracked")
    }
    assert {key: each.torch_shape for key, each in graph.parameters.items()} == expected
    if name not in ("resnet18", "resnet20", "resnet50"):
        assert list(graph.parameters) == list(expected)


def state_of(net: Any, seed: int) -> dict[str, Any]:
    """The state of a network, in which the statistics of batch normalisation are random, too."""
    numbers = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for key, value in state.items():
        # Vectors of batch normalisation: in these networks, all that are no biases of products.
        if value.ndim == 1 and any(part in key for part in ("bn", "downsample.1")):
            value.copy_(0.5 + torch.rand(value.shape, generator=numbers, dtype=value.dtype))
    return dict(state)


SIZES = [
    ("smallcnn", (1, 28, 28)), ("lenet5", (1, 28, 28)), ("resnet20", CIFAR),
    ("resnet20", (3, 9, 9)),
    *((name, CIFAR) for name in LARGE),
    *((name, (3, 64, 64)) for name in LARGE),
    ("googlenet", (3, 75, 75)), ("resnet18", (3, 71, 71)), ("pathnet", CIFAR),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "image", "training"),
    [
        *((*size, training) for size in SIZES for training in (False, True)),
        ("inception_v3", (3, 75, 75), False),
        ("inception_v3", (3, 8, 8), True),
    ],
)
def test_outputs_equal_pytorchs(name: str, image: Any, training: bool) -> None:
    torch.manual_seed(3)
    graph = make_network(name, image, 10)
    with torch.no_grad():
        net = torch_network(name, image, 10).double()
        state = {key: value.clone() for key, value in state_of(net, 5).items()}
        x = torch.randn(2, *image, dtype=torch.float64)
        net.train(training)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        expected = net(x)
        found = run(graph, state, x, training=training)
    scale = float(expected.abs().max())
    assert scale > 0
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-10 * scale)
    assert float((found[0] - found[1]).abs().max()) > 1e-9 * scale, "a net that sees nothing"


@pytest.mark.parametrize("name", ["smallcnn", "lenet5", "resnet20"])
def test_our_initial_parameters_load_into_pytorch_strictly(name: str) -> None:
    graph = make_network(name)
    arrays = initial_parameters(graph, seed=4)
    net = torch_network(name, graph.image, graph.classes)
    state = {key: torch.from_numpy(each) for key, each in to_torch(graph, arrays).items()}
    net.load_state_dict(state, strict=True)
    net.eval()
    x = torch.randn(3, *graph.image)
    with torch.no_grad():
        expected = net(x)
        found = run(graph, state, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    counted = sum(each.numel() for each in net.parameters())
    assert counted == graph.trained_words
    # He's rule keeps the size of activations: logits neither vanish nor explode.
    assert 0.05 < float(expected.std()) < 20


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smallcnn", 202_458),
        ("lenet5", 61_706),
        ("alexnet", 61_100_840),
        ("vgg16", 138_357_544),
        ("resnet18", 11_689_512),
        ("resnet20", 272_474),
        ("resnet50", 25_557_032),
        ("googlenet", 6_624_904),
        ("inception_v3", 23_834_568),
        ("pathnet", 291_530),
    ],
)
def test_known_totals_of_parameters(name: str, parameters: int) -> None:
    assert make_network(name).trained_words == parameters


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("alexnet", 0.71), ("vgg16", 15.47), ("resnet18", 1.81), ("resnet50", 4.09),
        ("googlenet", 1.50), ("inception_v3", 5.71), ("resnet20", 0.041), ("pathnet", 0.040),
    ],
)  # fmt: skip
def test_known_totals_of_multiply_adds(name: str, giga: float) -> None:
    graph = make_network(name)
    products = sum(
        row["forward_flops"]
        for row in graph.describe()
        if row["kind"] in ("convolution", "fully_connected")
    )
    assert round(products / 2e9, 3 if giga < 0.1 else 2) == giga
    assert graph.forward_flops() > products


def test_the_grids_of_inception_v3() -> None:
    graph = make_network("inception_v3")
    ends = ("Conv2d_2b_3x3.relu", "Mixed_5d.concatenate", "Mixed_6e.concatenate")
    assert [graph.shape(name) for name in (*ends, "Mixed_7c.concatenate")] == [
        (64, 147, 147), (288, 35, 35), (768, 17, 17), (2048, 8, 8),
    ]  # fmt: skip
    small = make_network("inception_v3", CIFAR)
    assert small.shape("Mixed_5d.concatenate") == (288, 32, 32)
    assert {name: each.shape for name, each in small.parameters.items() if name != "fc.weight"} == {
        name: each.shape for name, each in graph.parameters.items() if name != "fc.weight"
    } | {"fc.bias": (10,)}
    for image in ((3, 64, 64), (3, 6, 6)):
        with pytest.raises(ShapeError, match="are too small for inception_v3: operation 'Mixed_7a"):
            make_network("inception_v3", image)


def test_modules_of_a_pathnet_run_side_by_side() -> None:
    graph = pathnet((1, 8, 8), 3, layers=2, modules=5)
    for layer, before in ((1, "image"), (2, "layer1.sum")):
        assert len(graph.successors(before)) == 5
        total = graph.operation(f"layer{layer}.sum")
        assert isinstance(total, Add)
        assert len(set(graph.predecessors(total.name))) == 5
    assert graph.shape("layer2.sum") == (32, 4, 4)
    for layers, modules in ((0, 5), (2, 1)):
        with pytest.raises(ShapeError, match=f"found {layers} of {modules}"):
            pathnet((1, 8, 8), 3, layers=layers, modules=modules)


def test_a_last_pooling_window_that_is_not_full_counts_in_googlenet() -> None:
    graph = make_network("googlenet")
    sizes = [graph.shape(f"maxpool{number}")[1] for number in (1, 2, 3, 4)]
    assert sizes == [56, 28, 14, 7]
    pool = graph.operation("maxpool1")
    assert isinstance(pool, MaxPool)
    assert pool.pads(graph.shape("conv1.relu")) == (0, 0, 1, 1)


@pytest.mark.parametrize("name", ["smallcnn", "lenet5", "resnet18", "resnet20", "googlenet"])
@pytest.mark.parametrize("image", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 11, 17)])
def test_small_images(name: str, image: tuple[int, int, int]) -> None:
    graph = make_network(name, image, classes=7)
    assert graph.image == image
    assert graph.shape(graph.output) == (7, 1, 1)
    assert graph.name == name


def test_the_usual_sizes() -> None:
    assert make_network("resnet50").image == IMAGENET
    assert make_network("resnet50").classes == 1000
    assert make_network("resnet50", CIFAR).classes == 10
    assert make_network("resnet50", CIFAR, classes=100).classes == 100
    assert make_network("resnet50", (3, 96, 96)).classes == 1000
    assert make_network("resnet20").image == CIFAR
    assert make_network("lenet5").image == (1, 28, 28)


def test_names_and_sizes_that_do_not_work() -> None:
    with pytest.raises(UnknownNameError, match=r"'resnet51' is unknown: known are smallcnn, .*net"):
        make_network("resnet51")
    with pytest.raises(ShapeError, match=r"^images of 3×8×8 are too small for vgg16: operation "):
        make_network("vgg16", (3, 8, 8))
    with pytest.raises(ShapeError, match=r"^images of 1×3×30 are too small for lenet5: operation "):
        make_network("lenet5", (1, 3, 30))
    for image, classes in (((3, 0, 8), 10), ((3, 8), 10), ((3, 8, 8), 0)):
        with pytest.raises(ShapeError, match="all positive"):
            make_network("resnet20", image, classes)  # type: ignore[arg-type]
