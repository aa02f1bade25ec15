"""Hadamard matrices: square, of +1 and -1, with orthogonal rows.

Built from Paley's two constructions over prime fields (Paley 1933, doi 10.1002/sapm1933121311) and
Sylvester's doubling, which together give the widths of all common vision transformers (384, 768, 1024, 1152,
1280, 1408, 1536, 1664).
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]


@cache
def hadamard(order: int) -> Int8:
    """A Hadamard matrix (order, order), read-only.

    Raises:
        ValueError: none of the constructions gives that order.
    """
    matrix = _construct(order)
    if matrix is None:
        raise ValueError(f"no Hadamard matrix of order {order} from Paley's and Sylvester's constructions")
    matrix.flags.writeable = False
    return matrix


def _construct(order: int) -> Int8 | None:
    if order in (1, 2):
        return np.array([[1, 1], [1, -1]], dtype=np.int8)[:order, :order].copy()
    if order < 1 or order % 4:
        return None
    if _is_prime(order - 1):
        return _paley_one(order - 1)
    if (half := _construct(order // 2)) is not None:
        return np.kron(np.array([[1, 1], [1, -1]], dtype=np.int8), half)
    # 2 (q + 1) with q a prime of the form 4 k + 1
    q = order // 2 - 1
    return _paley_two(q) if q % 4 == 1 and _is_prime(q) else None


def _paley_one(q: int) -> Int8:
    """Order q + 1 for a prime q = 4 k + 3: I + S with S skew-symmetric."""
    matrix = np.ones((q + 1, q + 1), dtype=np.int8)
    matrix[1:, 1:] = _jacobsthal(q)
    matrix[1:, 0] = -1
    np.fill_diagonal(matrix, 1)
    return matrix


def _paley_two(q: int) -> Int8:
    """Order 2 (q + 1) for a prime q = 4 k + 1: a symmetric conference matrix with 2x2 blocks in place of 0 and ±1."""
    conference = np.ones((q + 1, q + 1), dtype=np.int8)
    conference[1:, 1:] = _jacobsthal(q)
    np.fill_diagonal(conference, 0)
    off = np.array([[1, 1], [1, -1]], dtype=np.int8)
    diagonal = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, off) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)


def _jacobsthal(q: int) -> Int8:
    """(q, q): 0 on the diagonal, elsewhere whether row - column is a square modulo q (+1) or not (-1)."""
    character = np.full(q, -1, dtype=np.int8)
    character[np.arange(1, q, dtype=np.int64) ** 2 % q] = 1
    character[0] = 0
    index = np.arange(q)
    matrix: Int8 = character[(index[:, None] - index[None, :]) % q]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
