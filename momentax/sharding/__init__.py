"""Carries array functions that know no mesh across meshes."""

from momentax.sharding._carry import carry as carry
