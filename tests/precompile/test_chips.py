"""Names of topologies, and those that are refused."""

import pytest

from t5x_selfimprove.precompile.chips import Topology, cubic


@pytest.mark.parametrize(
    ('name', 'slices', 'sizes', 'chips', 'said'),
    [
        ('v5e-64', 1, (8, 8), 64, 'v5e:8x8'),
        ('v5e:2x4', 1, (2, 4), 8, 'v5e:2x4'),
        ('v4-128', 1, (4, 4, 8), 128, 'v4:4x4x8'),
        ('v5p-1024', 1, (8, 8, 16), 1024, 'v5p:8x8x16'),
        ('v5p:4x4x4', 2, (4, 4, 4), 128, '2 x v5p:4x4x4'),
        ('v6e-1', 1, (1, 1), 1, 'v6e:1x1'),
        ('h100-32', 1, (4, 8), 32, 'h100:4x8'),
        ('h200:2x4', 1, (2, 4), 8, 'h200:2x4'),
        ('H100-4', 1, (1, 4), 4, 'h100:1x4'),
    ],
)
def test_names(name, slices, sizes, chips, said):
    topology = Topology(name, slices)
    assert (topology.sizes, topology.chips, str(topology)) == (sizes, chips, said)


def test_shapes_near_a_cube():
    assert [cubic(chips, 3) for chips in (1, 8, 16, 32, 64, 256)] == [
        (1, 1, 1),
        (2, 2, 2),
        (2, 2, 4),
        (2, 4, 4),
        (4, 4, 4),
        (4, 8, 8),
    ]


@pytest.mark.parametrize(
    ('name', 'slices', 'said'),
    [
        ('v9-8', 1, "there is no chip 'v9'; known are v4, v5e, v5p, v6e, v7x, h100, h200"),
        ('v5e:2x2x2', 1, 'a slice of v5e is written v5e:4x4 or by its number of chips, v5e-16'),
        ('v5p:4x4', 1, 'a slice of v5p is written v5p:4x4x4'),
        ('v5e-0', 1, 'by its number of chips'),
        ('v5e', 1, 'by its number of chips'),
        ('h100-12', 1, '12 GPUs are not whole hosts of 8; name them as hosts x GPUs'),
        ('v5e-4', 0, 'slices must be at least 1; it is 0'),
    ],
)
def test_what_there_is_not_is_refused(name, slices, said):
    with pytest.raises(ValueError, match=said):
        Topology(name, slices)
