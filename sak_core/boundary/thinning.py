"""Guo-Hall thinning (Guo, Hall 1989, doi 10.1145/62065.62074) of many masks at once, 64 pixels a machine word."""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Masks = npt.NDArray[np.bool_]

_ONE = np.uint64(1)
_LAST = np.uint64(63)
_WORDS_AT_ONCE = 1 << 15
"""Masks are thinned in groups of about this many words (256 kB), so that a group's intermediate arrays stay
in cache.
"""


def thin(masks: Masks) -> Masks:
    """Thins masks (T, h, w) to lines of one pixel; what lies outside counts as 0.

    Two subiterations alternate, the first for pixels with background to the east, the second to the west; a
    mask is finished as soon as one of them deletes nothing.
    """
    num_masks, height, width = masks.shape
    packed = _pack(masks)
    group = max(1, _WORDS_AT_ONCE // max(1, packed[0].size)) if num_masks else 1
    for start in range(0, num_masks, group):
        _thin_group(packed[start : start + group])
    return _unpack(packed, width)[:, :height]


def _pack(masks: Masks) -> Words:
    """(T, h, w) bool to (T, h, ceil(w / 64)): bit k of word j is column 64 j + k."""
    num_masks, height, width = masks.shape
    num_words = -(-width // 64)
    packed = np.zeros((num_masks, height, 8 * num_words), dtype=np.uint8)
    packed[:, :, : -(-width // 8)] = np.packbits(masks, axis=2, bitorder="little")
    return packed.view("<u8")


def _unpack(packed: Words, width: int) -> Masks:
    bits = np.unpackbits(packed.view(np.uint8), axis=2, count=width, bitorder="little")
    return bits.view(np.bool_)


def _thin_group(packed: Words) -> None:
    """Thins in place."""
    running = np.arange(len(packed))
    while len(running):
        for first in (True, False):
            current = packed[running]
            deleted = _deletable(current, first)
            changed = deleted.reshape(len(running), -1).any(axis=1)
            current &= ~deleted
            packed[running] = current
            running = running[changed]
            if not len(running):
                return


def _deletable(p: Words, first: bool) -> Words:
    """The pixels that a subiteration deletes: connectivity 1, two or three neighbours in pairs, and a side's
    condition.
    """
    rows = np.zeros((p.shape[0], p.shape[1] + 2, p.shape[2]), dtype=p.dtype)
    rows[:, 1:-1] = p
    west, east = _from_west(rows), _from_east(rows)
    n, s, w, e = rows[:, :-2], rows[:, 2:], west[:, 1:-1], east[:, 1:-1]
    nw, ne, sw, se = west[:, :-2], east[:, :-2], west[:, 2:], east[:, 2:]
    n_ne, ne_e, e_se, se_s = n | ne, ne | e, e | se, se | s
    s_sw, sw_w, w_nw, nw_n = s | sw, sw | w, w | nw, nw | n
    # one crossing from background to foreground around the pixel
    c1, c2, c3, c4 = ~n & ne_e, ~e & se_s, ~s & sw_w, ~w & nw_n
    one_crossing = (c1 ^ c2 ^ c3 ^ c4) & ~((c1 & c2) | (c3 & c4))
    # the smaller of the two ways to count neighbours in pairs is 2 or 3
    two_a, all_a = _at_least_two_and_all(nw_n, ne_e, se_s, sw_w)
    two_b, all_b = _at_least_two_and_all(n_ne, e_se, s_sw, w_nw)
    side = ((n_ne | ~se) & e) if first else ((s_sw | ~nw) & w)
    return p & one_crossing & two_a & two_b & ~(all_a & all_b) & ~side  # type: ignore[no-any-return]


def _at_least_two_and_all(a: Words, b: Words, c: Words, d: Words) -> tuple[Words, Words]:
    ab: Words = a & b
    cd: Words = c & d
    return ab | cd | ((a | b) & (c | d)), ab & cd


def _from_west(rows: Words) -> Words:
    """Every pixel's western neighbour."""
    shifted = rows << _ONE
    shifted[:, :, 1:] |= rows[:, :, :-1] >> _LAST
    return shifted


def _from_east(rows: Words) -> Words:
    """Every pixel's eastern neighbour."""
    shifted = rows >> _ONE
    shifted[:, :, :-1] |= rows[:, :, 1:] << _LAST
    return shifted
