"""Tests of Mixup, CutMix and MixupOrCutMix."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from stkd_keras import CutMix, InputError, Mixup, MixupOrCutMix

ALPHAS = [0.01, 0.1, 1.0, 10.0]


def one_hot(labels, classes):
    return np.eye(classes, dtype="float32")[labels]


@given(
    batch=st.integers(1, 9),
    num_images=st.integers(2, 4),
    alpha=st.sampled_from(ALPHAS),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    per_batch=st.booleans(),
    seed=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
)
@settings(max_examples=15, deadline=None)
def test_a_mixture_is_the_weighted_sum_of_its_images_labels_and_sample_weights(
    batch, num_images, alpha, probability, per_batch, seed
):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (batch, 3, 2, 1)).astype("float32")
    y = one_hot(rng.integers(0, 5, batch), 5)
    sample_weight = rng.uniform(0, 2, batch).astype("float32")
    mixup = Mixup(alpha, num_images, probability, per_batch)
    xm, ym, wm = mixup(x, y, sample_weight, seed=seed)
    partners, weights = (t.numpy() for t in mixup.draw(batch, seed=seed))

    expected = [np.zeros_like(x, np.float64), np.zeros_like(y, np.float64), np.zeros(batch)]
    for i in range(batch):
        for k in range(num_images):
            for total, values in zip(expected, (x, y, sample_weight), strict=True):
                total[i] += np.float64(weights[i, k]) * values[partners[i, k]]
    np.testing.assert_allclose(xm, expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ym, expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wm, expected[2], rtol=1e-5, atol=1e-6)

    assert (partners[:, 0] == np.arange(batch)).all()
    for k in range(1, num_images):
        assert sorted(partners[:, k]) == list(range(batch))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(ym.numpy().sum(axis=1), 1, rtol=1e-5)
    assert (weights >= 0).all()
    if per_batch:
        assert (weights == weights[0]).all()
    if probability == 0:
        assert (weights[:, 0] == 1).all()


@pytest.mark.parametrize(("alpha", "num_images"), [(0.01, 2), (0.1, 3), (1.0, 2), (10.0, 3)])
def test_the_weights_have_the_mean_and_variance_of_the_dirichlet_distribution(alpha, num_images):
    mixup = Mixup(alpha, num_images)
    draws = np.concatenate([mixup.draw(20_000, seed=(7, i))[1].numpy() for i in range(10)])
    mean = 1 / num_images
    variance = mean * (1 - mean) / (num_images * alpha + 1)
    # Five standard errors of 200,000 draws.
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=5 * (variance / 2e5) ** 0.5)
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.02)


@pytest.mark.parametrize(
    "mixing", [Mixup(0.01), Mixup(10.0, 3, 0.5, True), CutMix(), MixupOrCutMix()]
)
def test_xla_gives_the_same_mixtures(mixing):
    x = np.random.default_rng(0).uniform(0, 1, (64, 6, 6, 1)).astype("float32")
    y = one_hot(np.arange(64) % 10, 10)

    def mix(seed):
        return mixing(x, y, None, seed=seed)[:2]

    seed = tf.constant([3, 4], tf.int64)
    for plain, compiled in zip(mix(seed), tf.function(mix, jit_compile=True)(seed), strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-5)


def test_probability_is_the_share_of_samples_that_are_mixed():
    _, weights = Mixup(1.0, probability=0.3).draw(20_000, seed=(1, 2))
    assert abs((weights[:, 0] < 1).numpy().mean() - 0.3) < 0.02
    per_batch = Mixup(1.0, probability=0.3, per_batch=True)
    draw = tf.function(lambda seed: per_batch.draw(2, seed=seed)[1][0, 0])
    weights = [draw(tf.constant([0, i], tf.int64)) for i in range(400)]
    assert abs(np.mean([weight < 1 for weight in weights]) - 0.3) < 0.08


def test_mixtures_depend_only_on_the_seed():
    mixup = Mixup(1.0)
    first, again, other = (mixup.draw(32, seed=s) for s in [(1, 2), (1, 2), (1, 3)])
    assert (first[0].numpy() == again[0].numpy()).all()
    assert (first[1].numpy() == again[1].numpy()).all()
    assert (first[1].numpy() != other[1].numpy()).any()


def test_a_tf_data_pipeline_can_mix():
    x = tf.random.stateless_uniform((8, 4, 4, 3), (0, 0), maxval=255)
    y = tf.one_hot(tf.range(8), 8)
    dataset = tf.data.Dataset.from_tensors((x, y)).map(lambda x, y: Mixup(1.0)(x, y, seed=(5, 6)))
    xm, _, _ = next(iter(dataset.map(lambda x, y, _: (x, y, 0))))
    np.testing.assert_allclose(xm, Mixup(1.0)(x, y, None, seed=(5, 6))[0], rtol=1e-5)


def test_integer_pixels_become_float32_and_other_floats_stay():
    y = one_hot([0, 1], 2)
    assert Mixup()(np.zeros((2, 3), "uint8"), y, seed=(0, 0))[0].dtype == tf.float32
    assert Mixup()(tf.zeros((2, 3), tf.float16), y, seed=(0, 0))[0].dtype == tf.float16


@pytest.mark.parametrize(
    "mixing", [CutMix(0.3, 0.5), MixupOrCutMix(0.3, 0.5), Mixup(0.3, 3, 0.5, True)]
)
def test_a_mixing_is_restored_from_its_config(mixing):
    config = mixing.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(mixing))
    assert again.get_config() == config
    old = {**config, "partners": "any", "labels": "mixed"}  # In files of commit 1f4727a.
    assert type(mixing).from_config(old).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": -1}, "alpha is -1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"num_images": 1}, "num_images is 1"),
        ({"num_images": 2.5}, "num_images is 2.5"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"probability": -0.1}, "probability is -0.1"),
    ],
)
def test_an_argument_out_of_range_is_refused_in_one_line(arguments, named):
    with pytest.raises(InputError, match=named) as caught:
        Mixup(**arguments)
    assert "\n" not in str(caught.value)


def test_integer_labels_are_refused_with_a_hint():
    with pytest.raises(InputError, match="one_hot"):
        Mixup()(np.zeros((4, 3)), np.arange(4), seed=(0, 0))


@given(
    batch=st.integers(1, 8),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    alpha=st.sampled_from(ALPHAS),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
)
@settings(max_examples=15, deadline=None)
def test_cutmix_pastes_one_box_of_another_image_and_mixes_labels_by_its_area(
    batch, size, alpha, probability, seed
):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (batch, *size, 2)).astype("float32")
    y = one_hot(rng.integers(0, 5, batch), 5)
    sample_weight = rng.uniform(0, 2, batch).astype("float32")
    cutmix = CutMix(alpha, probability)
    xm, ym, wm = (t.numpy() for t in cutmix(x, y, sample_weight, seed=seed))
    partners, drawn = (t.numpy() for t in cutmix.draw(batch, seed=seed))
    for i in range(batch):
        partner = partners[i, 1]
        pasted = (xm[i] == x[partner]).all(axis=-1) & (partner != i)
        kept = (xm[i] == x[i]).all(axis=-1)
        assert (pasted | kept).all()
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
        for line in (rows, columns):  # Without a gap.
            assert (np.diff(np.flatnonzero(line)) == 1).all()
        share = pasted.mean()
        np.testing.assert_allclose(ym[i], (1 - share) * y[i] + share * y[partner], atol=1e-6)
        expected = (1 - share) * sample_weight[i] + share * sample_weight[partner]
        np.testing.assert_allclose(wm[i], expected, rtol=1e-5)
        # It is cut off at the edges, and never larger than was drawn.
        assert pasted.any(axis=1).sum() <= np.sqrt(drawn[i, 1]) * size[0] + 1e-3
    if probability == 0:
        np.testing.assert_array_equal(xm, x)


def test_the_boxes_of_cutmix_are_as_large_as_drawn_and_lie_everywhere():
    cutmix = CutMix()
    # Only samples with another partner than themselves show their box.
    partners, drawn = (t.numpy() for t in cutmix.draw(2000, seed=(3, 4)))
    x = np.broadcast_to(np.arange(2000, dtype="float32")[:, None, None, None], (2000, 20, 20, 1))
    y = np.eye(2000, dtype="float32")
    xm, ym, _ = cutmix(x, y, seed=(3, 4))
    others = partners[:, 1] != np.arange(2000)
    xm, ym, y, x, drawn = (np.asarray(each)[others] for each in (xm, ym, y, x, drawn))
    pasted = xm[..., 0] != x[..., 0]
    side = np.floor(np.sqrt(drawn[:, 1]) * 20)
    inside = pasted.any(axis=2).sum(axis=1)
    whole = (pasted.any(axis=2)[:, [0, -1]].sum(axis=1) == 0) & (side > 0)
    np.testing.assert_array_equal(inside[whole], side[whole])
    where = pasted.mean(axis=0)
    assert where.min() > 0.1
    np.testing.assert_allclose(where, where[::-1, ::-1], atol=0.08)
    np.testing.assert_allclose((ym * y).sum(axis=1), 1 - pasted.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("mixing", [Mixup(num_images=3), CutMix(), MixupOrCutMix()])
def test_outputs_are_mixed_in_the_shares_of_the_images(mixing):
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 255, (16, 6, 6, 1)).astype("float32"), one_hot(np.arange(16), 16)
    outputs = rng.uniform(size=(16, 5)).astype("float32")
    shares = mixing(x, y, seed=(1, 5))[1]
    mixed = mixing.mix_outputs(outputs, x, y, seed=(1, 5))
    np.testing.assert_allclose(mixed, shares.numpy() @ outputs, rtol=1e-5)


def test_each_sample_draws_mixup_or_cutmix():
    x = np.random.default_rng(0).uniform(0, 255, (400, 5, 5, 1)).astype("float32")
    y, weights = one_hot(np.arange(400), 400), np.arange(400, dtype="float32")
    seed, arguments = (5, 6), {"alpha": 0.5, "probability": 0.9}
    both, mixup, cutmix = (
        [t.numpy() for t in mixing(**arguments)(x, y, weights, seed=seed)]
        for mixing in (MixupOrCutMix, Mixup, CutMix)
    )
    is_cut = np.array([(a == b).all() for a, b in zip(both[0], cutmix[0], strict=True)])
    for drawn, blended, cut in zip(both, mixup, cutmix, strict=True):
        np.testing.assert_array_equal(drawn[is_cut], cut[is_cut])
        np.testing.assert_array_equal(drawn[~is_cut], blended[~is_cut])
    differ = (mixup[0] != cutmix[0]).any(axis=(1, 2, 3))
    assert abs(is_cut[differ].mean() - 0.5) < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Mixup.from_config({"partners": "same_class"}),
            "partners is same_class.*removed",
        ),
        (lambda: CutMix.from_config({"labels": "heaviest"}), "labels is heaviest.*removed"),
        (lambda: CutMix(alpha=0), "alpha is 0"),
        (lambda: CutMix()(np.zeros((4, 3)), np.eye(4), seed=(0, 0)), "no boxes to cut"),
    ],
)
def test_wrong_use_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
