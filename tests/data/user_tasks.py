"""A module that registers tasks and a mixture, as a user's would."""

import seqio
import tensorflow as tf
from small_corpora import TEXTS


def dataset(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({"targets": [*TEXTS, TEXTS[0]] if split == "train" else TEXTS[:1]})


for _name, _eos in (("windtunnel_test_a", True), ("windtunnel_test_b", False)):
    seqio.TaskRegistry.add(
        _name,
        source=seqio.FunctionDataSource(dataset, splits=("train", "validation")),
        preprocessors=[seqio.preprocessors.tokenize] + [seqio.preprocessors.append_eos] * _eos,
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=_eos)},
    )
seqio.MixtureRegistry.add("windtunnel_test_mixture", [("windtunnel_test_a", 1), ("windtunnel_test_b", 1)])
