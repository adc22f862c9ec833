"""Conversions between the conventions in which papers write momentum.

With gradient g_t, decay mu, learning rate eta and weights x:

    A  accumulate     b_t = mu b_{t-1} + g_t,              x -= eta b_t          heavy_ball, torch SGD, optax.trace
    B  velocity       v_t = mu v_{t-1} - eta_t g_t,        x += v_t              equals A while eta is constant
    C  average        m_t = mu m_{t-1} + (1-mu) g_t,       x -= eta m_t          average_gradients(debias=False)
    D  debiased       m_t / (1 - mu^t)                                           average_gradients()
    E  dampened       b_1 = g_1, b_t = mu b_{t-1} + (1-tau) g_t                  heavy_ball(dampening=tau)
    F  averaged       z -= gamma g(x),  x = (1-c) x + c z                        equals B with mu = 1-c, eta = c gamma

The conversions take numbers, arrays or schedules of the step count and return the same kind. With a schedule
the identities hold for the direction of each step, not for whole trajectories: A re-scales all history by the
current rate, B freezes each gradient's rate.
"""

import math
from collections.abc import Callable
from typing import Any

from momentax.typing import ScalarOrSchedule


def average_to_heavy_ball(learning_rate: ScalarOrSchedule, b1: ScalarOrSchedule) -> ScalarOrSchedule:
    """The rate with which A takes the steps that C takes: eta_A = eta_C (1 - mu).

    >>> round(average_to_heavy_ball(1.0, 0.9), 12)
    0.1
    """
    return _combine(lambda rate, decay: rate * (1 - decay), learning_rate, b1)


def heavy_ball_to_average(learning_rate: ScalarOrSchedule, b1: ScalarOrSchedule) -> ScalarOrSchedule:
    """The rate with which C takes the steps that A takes: eta_C = eta_A / (1 - mu).

    The same factor turns a decay per step of A into one per unit of its gain (SGDP writes it so).

    >>> round(heavy_ball_to_average(0.1, 0.9), 12)
    1.0
    """
    return _combine(lambda rate, decay: rate / (1 - decay), learning_rate, b1)


def heavy_ball_to_averaged_iterates(
    learning_rate: ScalarOrSchedule, b1: ScalarOrSchedule
) -> tuple[ScalarOrSchedule, ScalarOrSchedule]:
    """`(gamma, c)` of form F for the constant rate and decay of A: c = 1 - mu, gamma = eta / (1 - mu).

    >>> gamma, c = heavy_ball_to_averaged_iterates(0.1, 0.75)
    >>> gamma, c
    (0.4, 0.25)
    """
    return heavy_ball_to_average(learning_rate, b1), _combine(lambda decay: 1 - decay, b1)


def independent_to_decoupled(weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule) -> ScalarOrSchedule:
    """The `weight_decay` of `decays.decoupled` (multiplied by the rate) for one that papers apply without it.

    >>> round(independent_to_decoupled(1e-4, 1e-3), 12)
    0.1
    """
    return _combine(lambda decay, rate: decay / rate, weight_decay, learning_rate)


def gain(b1: float) -> float:
    """How much longer than one gradient the buffer of A grows under a constant gradient: 1 / (1 - mu).

    >>> gain(0.75)
    4.0
    """
    return 1 / (1 - b1)


def half_life(b1: float) -> float:
    """Steps after which a gradient's weight in the buffer has halved: ln 2 / -ln mu.

    >>> half_life(0.5)
    1.0
    """
    return math.log(2) / -math.log(b1)


def heavy_ball_on_quadratic(smallest: float, largest: float) -> tuple[float, float]:
    """`(learning_rate, b1)` with the best rate, sqrt(mu), for A on a quadratic with these curvatures.

    sqrt(mu) = (sqrt(k) - 1) / (sqrt(k) + 1), k = largest / smallest;  eta = 4 / (sqrt(largest) + sqrt(smallest))^2.

    >>> heavy_ball_on_quadratic(1.0, 9.0)
    (0.25, 0.25)
    """
    root = math.sqrt(largest / smallest)
    return 4 / (math.sqrt(largest) + math.sqrt(smallest)) ** 2, ((root - 1) / (root + 1)) ** 2


def nesterov_on_quadratic(smallest: float, largest: float) -> tuple[float, float]:
    """`(learning_rate, b1)` of Nesterov's constant scheme: eta = 1/largest, mu = (sqrt(k)-1) / (sqrt(k)+1).

    >>> nesterov_on_quadratic(1.0, 9.0)
    (0.1111111111111111, 0.5)
    """
    root = math.sqrt(largest / smallest)
    return 1 / largest, (root - 1) / (root + 1)


def _combine(formula: Callable[..., Any], *values: ScalarOrSchedule) -> Any:
    if not any(callable(value) for value in values):
        return formula(*values)
    return lambda count: formula(*(value(count) if callable(value) else value for value in values))
