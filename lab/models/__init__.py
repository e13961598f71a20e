"""Models: a config becomes pure `init`, `logits`, `nll` and `loss`, and a record for each weight.

`build` imports jax when it is called, so that counts and validation stay light. A model of your own:

    @models.register("my-kind")
    def my_model(config, unroll): ...   # returns an object with the methods of `lab.models.model.Model`
"""

from lab.models.registry import at_width, build, register

__all__ = ["at_width", "build", "register"]
