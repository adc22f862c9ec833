"""What a transformation says about itself; it decides which checks are run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import optax


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a transformation promises. Each field decides which checks are generated, or what they ask.

    Attributes:
      needs_params: `update` cannot do without `params`, and says so when they are missing.
      needs_value: `update` cannot do without the loss, given as `value=`, and says so when it is missing.
      has_state: The state holds something for each parameter, so a gradient tree can fail to match it.
      acts_on: `"every leaf"`, or `"matrices"`: at least one leaf of rank two or more, and none of lower rank.
      plain: What the transformation comes down to where its technique does nothing, such as Adam for a
        projection around Adam. None: the identity, or for a terminal any constant multiple of the gradient.
      couples_leaves: The update of a leaf depends on other leaves, as after clipping by the global norm.
      reads_names: What happens to a leaf depends on its name.
      has_learning_rate: The updates are ready to be added to the parameters. Otherwise the battery appends
        `optax.scale_by_learning_rate(learning_rate)` where it trains something.
      learns: Training with it makes progress on convex problems.
      learning_rate: The rate that the battery appends; not used with `has_learning_rate`.
      non_finite: A NaN in a gradient `"propagates"` to the update of its leaf, or the step is one that the
        transformation `"skips"`: zero updates, and the next step as if this one had not been.
      complex_ok: Complex leaves are handled; otherwise they are refused with an error naming the leaf.
      static_args: Arguments of the factory which must stay Python values, hence not be injected.
      scheduled: Numeric arguments of the factory which may also be schedules.
      static_choices: A bad value for each argument that chooses between behaviours; the factory refuses it.
      parts: Names of the transformations it is made of; errors may name them in place of the factory.
      acts_in: The dtype of leaves on which it acts, as far as it matters.
      documented: The factory carries the documentation of a published technique, and the text checks apply.
    """

    needs_params: bool = False
    needs_value: bool = False
    has_state: bool = True
    acts_on: Literal["every leaf", "matrices"] = "every leaf"
    plain: optax.GradientTransformation | None = None
    couples_leaves: bool = False
    reads_names: bool = False
    has_learning_rate: bool = False
    learns: bool = True
    learning_rate: float = 0.05
    non_finite: Literal["propagates", "skips"] = "propagates"
    complex_ok: bool = False
    static_args: tuple[str, ...] = ()
    scheduled: tuple[str, ...] = ()
    static_choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] = ()
    acts_in: str = "float32"
    documented: bool = False
