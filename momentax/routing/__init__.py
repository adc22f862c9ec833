"""Which rule applies to which leaf, and which of its axes are inputs, outputs and stacks; explains itself."""

from momentax.routing._dimension_numbers import muon_dimension_numbers as muon_dimension_numbers
from momentax.routing._equinox import equinox as equinox
from momentax.routing._explain import Explanation as Explanation
from momentax.routing._explain import explain as explain
from momentax.routing._flax import flax as flax
from momentax.routing._no_decay_on_vectors import no_decay_on_vectors as no_decay_on_vectors
from momentax.routing._only_matrices import only_matrices as only_matrices
from momentax.routing._resolve import Routing as Routing
from momentax.routing._resolve import resolve as resolve
from momentax.routing._rules import Rule as Rule
from momentax.routing._rules import RuleSet as RuleSet
from momentax.routing._rules import embedding as embedding
from momentax.routing._rules import head as head
from momentax.routing._rules import matrix as matrix
from momentax.routing._rules import vector as vector
