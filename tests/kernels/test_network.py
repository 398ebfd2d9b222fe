"""Networks as lists of layers: the reference's kernels to rounding, finite networks of great width, what is refused."""

import pytest
import torch

from exact_ntk.kernels import cntk
from exact_ntk.kernels.duals import ACTIVATIONS, RELU, leaky_relu
from exact_ntk.kernels.network import Blur, Conv, Layer, Pool, Readout, network_kernels
from tests.kernels.test_reference import ENDS, images


def paper_network(depth: int, kind: str, first: bool, last: bool) -> list[Layer]:
    hidden = [layer for _ in range(depth - 2) for layer in (Conv(), RELU)]
    return [Conv(trained=first), RELU, *hidden, Readout(kind, trained=last)]


@pytest.mark.parametrize("kind", ["vanilla", "gap"])
@pytest.mark.parametrize("ends", ENDS)
def test_is_the_reference_for_the_papers_networks(kind, ends):
    x, y = images(4, (2, 4, 5)), images(3, (2, 4, 5), seed=1)
    y[0] = x[1]
    x[2, :, :, 0], x[3] = 0, 0
    options = dict(readouts=(kind, f"{kind}-nngp"), train_first=ends[0], train_last=ends[1])
    for depth in (3, 6):
        layers = paper_network(depth, kind, *ends)
        for other in (y, None):
            found = torch.stack(network_kernels(x, other, layers=layers))
            expected = cntk(x, other, depths=(depth,), backend="reference", dtype=torch.float64, **options)[:, 0]
            # Measured: at most 5e-16.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.max()))


def test_an_even_linear_activation_is_none():
    """leaky_relu(1) is the identity, and so is its layer: K = S, Kdot = 1."""
    x = images(3, (1, 4, 4))
    with_it, without = (
        network_kernels(x, layers=[Conv(), *middle, Pool(), Conv(5, bias=0.2), RELU, Readout("vanilla")])
        for middle in ([leaky_relu(1.0)], [])
    )
    torch.testing.assert_close(torch.stack(with_it), torch.stack(without), rtol=1e-14, atol=0)


def test_circular_networks_do_not_see_where_images_begin():
    x, y = images(2, (2, 5, 4)), images(2, (2, 5, 4), seed=1)
    layers = [
        *(Conv(5, "circular", bias=0.3), leaky_relu(0.1), Conv(3, "circular"), RELU),
        *(Blur(2, "circular"), Readout("vanilla")),
    ]
    shifted = network_kernels(x.roll((2, 1), (2, 3)), y.roll((2, 1), (2, 3)), layers=layers)
    torch.testing.assert_close(shifted, network_kernels(x, y, layers=layers), rtol=1e-14, atol=0)


def test_a_blur_over_the_whole_circle_is_the_mean():
    x = images(3, (1, 5, 5))
    body = [Conv(3, "circular"), RELU]
    blurred = network_kernels(x, layers=[*body, Blur(2, "circular"), Readout("vanilla")])
    mean = network_kernels(x, layers=[*body, Readout("gap")])
    torch.testing.assert_close(torch.stack(blurred), 25 * torch.stack(mean), rtol=1e-14, atol=0)


def test_equal_images_have_the_diagonal_value_wherever_they_stand():
    x = images(3, (2, 4, 4))
    layers = [Conv(bias=0.1), RELU, Pool(), Conv(5), RELU, Blur(1), Readout("vanilla")]
    for own, moved in zip(
        network_kernels(x, layers=layers), network_kernels(x, x[[1, 2, 0]], layers=layers), strict=True
    ):
        torch.testing.assert_close(moved[[1, 2, 0], [0, 1, 2]], own.diagonal()[[1, 2, 0]], rtol=1e-14, atol=0)
        assert torch.equal(own, own.T)


@pytest.mark.parametrize(
    "layers, words",
    [
        ([], "at least a Readout"),
        ([Conv(), RELU], "Readout comes last"),
        ([Readout("gap"), Conv(), RELU, Readout("gap")], "layer 0.*Readout comes last"),
        ([Conv(7), RELU, Readout("gap")], "3 x 3 or 5 x 5"),
        ([Conv(bias=-1.0), RELU, Readout("gap")], "standard deviation"),
        ([Conv(padding="mirror"), RELU, Readout("gap")], "zero or circular"),
        ([RELU, Readout("gap")], "needs a Conv"),
        ([Conv(), RELU, Pool(), ACTIVATIONS["erf"], Readout("gap")], "layer 3.*needs a Conv"),
        ([Conv(), RELU, Pool(), Conv(), RELU, Pool(), Readout("gap")], "layer 5.*2 x 3 pixels do not divide"),
        ([Conv(), RELU, Blur(-1), Readout("gap")], "c is at least 0"),
        ([Conv(), RELU, Readout("max")], "vanilla or gap"),
    ],
)
def test_what_makes_no_network_is_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        network_kernels(images(2, (1, 4, 6)), layers=layers)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        network_kernels(images(1, (1, 4, 4)), images(1, (1, 4, 5)), layers=[Conv(), RELU, Readout("gap")])
    with pytest.raises(MemoryError, match="one pair of 2000 x 2000 images"):
        network_kernels(torch.ones(1, 1, 2000, 2000), layers=[Conv(), RELU, Readout("gap")])
