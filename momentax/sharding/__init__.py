"""Carries array functions that know no mesh across meshes, and divides arrays so that shards are independent."""

from momentax.sharding._blocks import Blocks as Blocks
from momentax.sharding._blocks import divide as divide
from momentax.sharding._carry import carry as carry
