"""Carries array functions that know no mesh across meshes, and divides arrays so that shards are independent."""

from momentax.sharding._carry import carry as carry
from momentax.sharding._distribute import distribute as distribute
from momentax.sharding._noise import entry_numbers as entry_numbers
from momentax.sharding._noise import noise as noise
from momentax.sharding._placed import placed as placed
from momentax.sharding._places import Place as Place
from momentax.sharding._places import place_of as place_of
from momentax.sharding._places import stated as stated
from momentax.sharding._places import stating as stating
from momentax.sharding._plan import Group as Group
from momentax.sharding._plan import Layout as Layout
from momentax.sharding._plan import Plan as Plan
from momentax.sharding._plan import newton_schulz_flops as newton_schulz_flops
from momentax.sharding._plan import plan_matrices as plan_matrices
from momentax.sharding._specs import resolve_specs as resolve_specs
from momentax.sharding._state_shardings import check_memory as check_memory
from momentax.sharding._state_shardings import state_shardings as state_shardings
from momentax.sharding._strata import MANY as MANY
from momentax.sharding._strata import Strata as Strata
from momentax.sharding._strata import divide as divide
