import numpy as np
import pytest

from medtrain.data.topology import (
    Topology,
    derive_kernel_sizes,
    derive_topology,
    feature_map_elements,
    features,
    initial_patch,
    shrink,
)


def test_pools_until_eight_voxels_are_no_longer_left() -> None:
    shape = derive_topology((1, 1, 1), (36, 50, 35))
    # 36 -> 18 -> 9 -> 5 (halves are rounded up), so three times; 35 -> 18 -> 9 -> 5
    assert shape == Topology((40, 56, 40), ((1, 1, 1), *[(2, 2, 2)] * 3), ((3, 3, 3),) * 4)
    assert shape.divisor == (8, 8, 8)


def test_a_coarse_axis_waits_until_the_others_caught_up() -> None:
    shape = derive_topology((3.6, 0.625, 0.625), (20, 320, 256))
    # 0.625 -> 1.25 -> 2.5: 3.6 / 2.5 < 2 from the third stage on
    assert shape.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert shape.kernel_sizes == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)
    assert derive_kernel_sizes((3.6, 0.625, 0.625), shape.strides) == shape.kernel_sizes


def test_a_single_remaining_axis_needs_twelve_voxels() -> None:
    assert derive_topology((1, 1), (11, 4)).strides == ((1, 1),)
    assert derive_topology((1, 1), (12, 4)).strides == ((1, 1), (2, 1))


def test_exact_pools_only_what_divides() -> None:
    # 44 -> 22 -> 11, 40 -> 20 -> 10; a single axis of 10 is too short to go on
    assert derive_topology((1, 1, 1), (44, 40, 21), exact=True) == Topology(
        (44, 40, 21), ((1, 1, 1), (2, 2, 1), (2, 2, 1)), ((3, 3, 3),) * 3
    )


def test_stages_can_be_limited() -> None:
    assert derive_topology((1, 1), (512, 512), max_stages=3).strides == ((1, 1), (2, 2), (2, 2))


def test_initial_patch_is_isotropic_in_mm_and_clipped() -> None:
    assert initial_patch((1, 1, 1), (500, 500, 500)) == (256, 256, 256)
    patch = initial_patch((4, 1, 1), (500, 1000, 1000))
    np.testing.assert_allclose(np.multiply(patch, (4, 1, 1)), 256 * 4 ** (1 / 3), rtol=0.01)
    assert initial_patch((1, 1), (300, 5000)) == (300, 2048)


def test_features_double_up_to_a_limit() -> None:
    assert features(6, base=32, largest=320) == (32, 64, 128, 256, 320, 320)


def test_feature_map_elements_by_hand() -> None:
    # 2-D, 8 x 8: encoder 2*4*64 + 2*8*16; decoder 3*4*64; logits 3*64
    assert feature_map_elements((8, 8), ((1, 1), (2, 2)), (4, 8), 3) == 512 + 256 + 768 + 192


def test_shrink_takes_the_axis_that_covers_most_and_the_finest_step() -> None:
    shape = derive_topology((1, 1, 1), (256, 256, 256))
    assert shape.divisor == (64, 64, 64)
    # 256 / 512 is the smallest share; the last of the two equal axes goes, from 256 to 224 = 7 * 32, not to 192
    assert shrink(shape, (1, 1, 1), (512, 300, 300)).patch_size == (256, 256, 224)


def test_shrink_with_given_strides_and_at_the_end() -> None:
    strides = ((1, 1), (4, 4))
    shape = Topology((8, 8), strides, ((3, 3),) * 2)
    smaller = shrink(shape, (1, 1), (8, 16), strides=strides)
    assert (smaller.patch_size, smaller.strides) == ((4, 8), strides)
    smallest = Topology((4, 4), strides, ((3, 3),) * 2)
    assert shrink(smallest, (1, 1), (8, 8), strides=strides) is smallest


@pytest.mark.parametrize("seed", range(5))
def test_patches_are_multiples_of_the_strides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        spacing, size = rng.uniform(0.3, 8, 3), rng.integers(8, 400, 3)
        shape = derive_topology(spacing, size)
        assert all(n % m == 0 for n, m in zip(shape.patch_size, shape.divisor))
        assert all(0 <= n - wanted < m for n, wanted, m in zip(shape.patch_size, size, shape.divisor))
        assert len(shape.strides) == len(shape.kernel_sizes)
