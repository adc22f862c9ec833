"""The convex functions that the tests go through: at least one for each factory of `momentax.convex`."""

from momentax import convex

BY_FACTORY = {
    convex.l1: [convex.l1()],
    convex.quadratic: [convex.quadratic()],
    convex.huber: [convex.huber(0.4)],
    convex.dead_zone: [convex.dead_zone(0.3)],
    convex.tanh: [convex.tanh(2.5)],
    convex.relativistic: [convex.relativistic(0.7)],
    convex.l2: [convex.l2(), convex.l2(scope="global")],
    convex.lp: [convex.lp(1.5), convex.lp(3)],
    convex.linf: [convex.linf()],
    convex.top_k: [convex.top_k(3)],
    convex.row_norm: [convex.row_norm()],
    convex.nuclear: [convex.nuclear()],  # with `steps` its subgradient is one only nearly: tests/convex/test_nuclear.py
}
FUNCTIONS = [function for functions in BY_FACTORY.values() for function in functions]

ELEMENTWISE = (convex.l1, convex.quadratic, convex.huber, convex.dead_zone, convex.tanh, convex.relativistic)
NORMS = [function for factory in BY_FACTORY if factory not in ELEMENTWISE[1:] for function in BY_FACTORY[factory]]
BOUNDED = [function for function in FUNCTIONS if function.name != "quadratic"]  # with a bounded subgradient
STACKED = [function for function in FUNCTIONS if function.on]


def name(function: convex.ConvexFunction) -> str:
    """A test id."""
    return function.name
