"""Seeds that are pure functions of (data_seed, step, replica)."""

import tensorflow as tf

# What a draw is for. Draws for two purposes are independent though they share a data_seed.
ORDER, AUGMENTATION, MIXING, NEGATIVES = range(4)


def step_seed(data_seed, stream: int, step, replica=0) -> tf.Tensor:
    """Returns the seed of one purpose at one step.

    Args:
        data_seed: integer, the run's seed of everything but the initial weights.
        stream: `ORDER`, `AUGMENTATION`, `MIXING` or `NEGATIVES`.
        step: integer, or scalar integer tensor: batches trained on before this one (for `ORDER`,
            the epoch).
        replica: integer, or scalar integer tensor: number of the replica.

    Returns:
        int64 tensor of shape (2,), a seed for `tf.random.stateless_uniform` and its like.
    """
    seed = tf.stack([tf.cast(data_seed, tf.int64), tf.constant(stream, tf.int64)])
    for number in (step, replica):
        # The algorithm is named because "auto_select" may choose another one under XLA.
        seed = tf.random.experimental.stateless_fold_in(
            seed, tf.cast(number, tf.int64), alg="philox"
        )
    return seed
