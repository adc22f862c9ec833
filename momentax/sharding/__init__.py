"""Carries array functions that know no mesh across meshes, and divides arrays so that shards are independent."""

from momentax.sharding._carry import carry as carry
from momentax.sharding._distribute import Plan as Plan
from momentax.sharding._distribute import distribute as distribute
from momentax.sharding._distribute import plan_batches as plan_batches
from momentax.sharding._strata import MANY as MANY
from momentax.sharding._strata import Strata as Strata
from momentax.sharding._strata import divide as divide
