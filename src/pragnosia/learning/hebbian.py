"""Hebb and Oja: what fires together wires together, and, with Oja, without end.

    dw[i, j] = rate mean_b( y[b, i] x[b, j] )                              Hebb 1949
    dw[i, j] = rate mean_b( y[b, i] x[b, j] - y[b, i]^2 w[i, j] )          Oja 1982, doi:10.1007/BF00275687, eq. 3
    dW       = rate mean_b( y x' - lower(y y') W )                         several units: Sanger 1989, eq. 6

x is what arrives, y = W x what is said. Oja's unit comes to rest at the first principal component of x, of length one;
Sanger's at the first components in order. Memory per synapse: nothing but its weight.

B batch, I inputs, N neurons.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def hebb(x: Float[Tensor, "B I"], y: Float[Tensor, "B N"], *, rate: float) -> Float[Tensor, "N I"]:
    """The change of the weights; it grows without bound where nothing else holds it."""
    return rate * (y.T @ x) / len(x)


def oja(
    x: Float[Tensor, "B I"], y: Float[Tensor, "B N"], weight: Float[Tensor, "N I"], *, rate: float
) -> Float[Tensor, "N I"]:
    """The change of the weights of neurons that do not hear of each other."""
    return rate * ((y.T @ x) / len(x) - y.square().mean(0)[:, None] * weight)


def sanger(
    x: Float[Tensor, "B I"], y: Float[Tensor, "B N"], weight: Float[Tensor, "N I"], *, rate: float
) -> Float[Tensor, "N I"]:
    """The change of the weights of neurons each of which leaves to the next what it has not said."""
    return rate * (y.T @ x - (y.T @ y).tril() @ weight) / len(x)
