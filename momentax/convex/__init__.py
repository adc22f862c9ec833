"""The convex functions K of Lion-K: value, subgradient, conjugate, and the constraint they imply."""

from momentax.convex._convex_function import ConvexFunction as ConvexFunction
from momentax.convex._elementwise import dead_zone as dead_zone
from momentax.convex._elementwise import huber as huber
from momentax.convex._elementwise import l1 as l1
from momentax.convex._elementwise import quadratic as quadratic
from momentax.convex._elementwise import relativistic as relativistic
from momentax.convex._elementwise import tanh as tanh
from momentax.convex._norms import l2 as l2
from momentax.convex._norms import linf as linf
from momentax.convex._norms import lp as lp
from momentax.convex._norms import row_norm as row_norm
from momentax.convex._nuclear import nuclear as nuclear
from momentax.convex._top_k import top_k as top_k
