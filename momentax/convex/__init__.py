"""The convex functions K of Lion-K: value, subgradient, conjugate, and the constraint they imply."""

from momentax.convex._elementwise import ConvexFunction as ConvexFunction
from momentax.convex._elementwise import dead_zone as dead_zone
from momentax.convex._elementwise import huber as huber
from momentax.convex._elementwise import l1 as l1
from momentax.convex._elementwise import quadratic as quadratic
from momentax.convex._elementwise import relativistic as relativistic
from momentax.convex._elementwise import tanh as tanh
