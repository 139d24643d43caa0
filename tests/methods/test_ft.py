"""Tests of FT."""

import tensorflow as tf
from every_method import call, inputs_of, make

PARTS = ("encoder", "decoder", "translator")


def test_the_paraphraser_learns_in_the_pretraining_stage_only():
    term, (student, teacher, labels) = make("ft"), inputs_of("ft")
    student, teacher = (tf.constant(each["stage3"]) for each in (student, teacher))
    call(term, {"stage3": student}, {"stage3": teacher}, labels)
    learning = {}
    for stage, loss in (("training", call), ("pretraining", type(term).pretraining_loss)):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([student, teacher])
            value = tf.reduce_mean(loss(term, {"stage3": student}, {"stage3": teacher}, labels))
        for part in PARTS:
            variables = [variable.value for variable in getattr(term, part).trainable_variables]
            trained = {gradient is not None for gradient in tape.gradient(value, variables)}
            assert len(trained) == 1
            learning[stage, part] = trained.pop()
        assert tape.gradient(value, teacher) is None
        assert (tape.gradient(value, student) is None) == (stage == "pretraining")
    assert [learning["training", part] for part in PARTS] == [False, False, True]
    assert [learning["pretraining", part] for part in PARTS] == [True, True, False]
