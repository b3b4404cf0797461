"""One decoding pass as a single compiled function: a pass of a small model is some thousand small operators, and calling
them costs more than what they compute.

Compiled at the first call (``dalle_model.compiling``). What one query computes is a fixed sequence of roundings: sums run
over their terms in order, or in 16 lanes that are added at the end, never by how many queries are beside it. So a
picture does not depend on its company. ``contract`` lets the compiler fuse a product and a sum, nothing more.

Axes: Q queries, L layers, R rows of the cache, H heads, D channels of a head, T positions, K inputs and N outputs of a
matrix. A matrix lies in the order in which it is read, [N / BLOCK, K / UNROLL, BLOCK / GROUP, UNROLL, GROUP] with all but the
first axis flat: float32, or integers with a float32 scale per output. Cached keys lie by spans of positions [L, R, H, T / SPAN, D * SPAN], values [L, R, H, T, D]:
float32, or integers with a scale per position and head.
"""

import numpy as np

from dalle_model.compiling import compiled

BLOCK = 256
"""Outputs that are summed together: wide enough that sums wait for no product, narrow enough for the nearest cache."""
UNROLL = 8
"""Inputs that are multiplied between reading and writing a sum."""
GROUP = 32
LANES = 16
SPAN = 64
"""Positions whose keys lie together, channel by channel."""

_EPS = np.float32(1e-6)
_ONE, _ZERO, _NEVER = np.float32(1.0), np.float32(0.0), np.float32(-np.inf)
_LIMIT_8, _LIMIT_16 = np.float32(127), np.float32(32767)
# exp(x) = 2^n * exp(f), f within ln 2 / 2 of zero; Cephes' polynomial (Moshier 1989), 1e-7 of the value off
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_LOG2E, _MAGIC = np.float32(1.44269504088896341), np.float32(12582912.0)  # 1.5 * 2^23 rounds to whole numbers
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@compiled
def _add_products(sums, x, w):  # type: ignore[no-untyped-def]
    """sums [BLOCK] += x [UNROLL] @ w [UNROLL * BLOCK], which lies [BLOCK / GROUP, UNROLL, GROUP]."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for group in range(BLOCK // GROUP):
        total, part = sums[group * GROUP :][:GROUP], w[group * UNROLL * GROUP :][: UNROLL * GROUP]
        for j in range(GROUP):
            s = total[j]
            s = s + x0 * np.float32(part[j])
            s = s + x1 * np.float32(part[GROUP + j])
            s = s + x2 * np.float32(part[2 * GROUP + j])
            s = s + x3 * np.float32(part[3 * GROUP + j])
            s = s + x4 * np.float32(part[4 * GROUP + j])
            s = s + x5 * np.float32(part[5 * GROUP + j])
            s = s + x6 * np.float32(part[6 * GROUP + j])
            s = s + x7 * np.float32(part[7 * GROUP + j])
            total[j] = s


@compiled
def _add_products_of_two(sums, x, y, w):  # type: ignore[no-untyped-def]
    """As ``_add_products`` for x and for y, whose sums stand one after the other: each weight is widened once."""
    for half in range(0, UNROLL, 4):
        x0, x1, x2, x3 = x[half], x[half + 1], x[half + 2], x[half + 3]
        y0, y1, y2, y3 = y[half], y[half + 1], y[half + 2], y[half + 3]
        for group in range(BLOCK // GROUP):
            total, part = sums[group * GROUP :][: BLOCK + GROUP], w[(group * UNROLL + half) * GROUP :][: 4 * GROUP]
            for j in range(GROUP):
                s, t = total[j], total[BLOCK + j]
                v = np.float32(part[j])
                s, t = s + x0 * v, t + y0 * v
                v = np.float32(part[GROUP + j])
                s, t = s + x1 * v, t + y1 * v
                v = np.float32(part[2 * GROUP + j])
                s, t = s + x2 * v, t + y2 * v
                v = np.float32(part[3 * GROUP + j])
                s, t = s + x3 * v, t + y3 * v
                total[j], total[BLOCK + j] = s, t


@compiled
def _multiply(x, w, scales, out, sums):  # type: ignore[no-untyped-def]
    """out [Q, N] = x [Q, K] @ w * scales; sums [Q * BLOCK] is scratch."""
    count, size = x.shape
    pairs = 0 if w.itemsize == 4 else count // 2  # what is no integer is not widened, and read faster in one go
    for block in range(w.shape[0]):
        for j in range(count * BLOCK):
            sums[j] = _ZERO
        for k in range(0, size, UNROLL):
            part = w[block, k * BLOCK : (k + UNROLL) * BLOCK]
            for i in range(0, 2 * pairs, 2):
                _add_products_of_two(
                    sums[i * BLOCK : (i + 2) * BLOCK], x[i, k : k + UNROLL], x[i + 1, k : k + UNROLL], part
                )
            for i in range(2 * pairs, count):
                _add_products(sums[i * BLOCK : (i + 1) * BLOCK], x[i, k : k + UNROLL], part)
        scale = scales[block * BLOCK : (block + 1) * BLOCK]
        for i in range(count):
            here, total = out[i, block * BLOCK : (block + 1) * BLOCK], sums[i * BLOCK : (i + 1) * BLOCK]
            for j in range(BLOCK):
                here[j] = total[j] * scale[j]


@compiled
def _add(x, more):  # type: ignore[no-untyped-def]
    """x [Q, n] += more [Q, n and more]."""
    for i in range(x.shape[0]):
        row, other = x[i], more[i]
        for j in range(x.shape[1]):
            row[j] += other[j]


@compiled
def _exponential(x, powers):  # type: ignore[no-untyped-def]
    """x [n] = exp(x), float32; powers int32 [n] is scratch."""
    n = len(x)
    for j in range(n):
        v = min(max(x[j], _LEAST), _MOST)
        whole = (v * _LOG2E + _MAGIC) - _MAGIC
        f = v - whole * _LN2_HIGH
        f = f - whole * _LN2_LOW
        p = _C0 * f + _C1
        p = p * f + _C2
        p = p * f + _C3
        p = p * f + _C4
        p = p * f + _C5
        x[j] = p * (f * f) + f + _ONE
        powers[j] = (np.int32(whole) + _BIAS) << _MANTISSA
    scale = powers.view(np.float32)
    for j in range(n):
        x[j] *= scale[j]


@compiled
def _sum(x, lanes):  # type: ignore[no-untyped-def]
    """The sum of x [n] in a fixed order; lanes [LANES] is scratch."""
    n = len(x)
    for j in range(LANES):
        lanes[j] = _ZERO
    whole = n // LANES * LANES
    for start in range(0, whole, LANES):
        part = x[start : start + LANES]
        for j in range(LANES):
            lanes[j] += part[j]
    total = _ZERO
    for j in range(LANES):
        total += lanes[j]
    for j in range(whole, n):
        total += x[j]
    return total


@compiled
def _normalise(x, centred, out, lanes):  # type: ignore[no-untyped-def]
    """out [n] = RMS norm of x, or layer norm where ``centred``, without a gain."""
    n = len(x)
    mean = _sum(x, lanes) / np.float32(n) if centred else _ZERO
    for j in range(n):
        out[j] = (x[j] - mean) * (x[j] - mean)
    unit = _ONE / np.sqrt(_sum(out[:n], lanes) / np.float32(n) + _EPS)
    for j in range(n):
        out[j] = (x[j] - mean) * unit


@compiled
def _normalise_rows(x, gain, centred, out, lanes):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        row = out[i]
        _normalise(x[i], centred, row, lanes)
        for j in range(x.shape[1]):
            row[j] *= gain[j]


@compiled
def _kept(x, cache):  # type: ignore[no-untyped-def]
    """Write x [D] into cache [D]; the scale by which it is read: 1, or of integers."""
    if cache.itemsize == 4:
        for d in range(len(x)):
            cache[d] = x[d]
        return _ONE
    largest = _ZERO
    for d in range(len(x)):
        largest = max(largest, abs(x[d]))
    scale = largest / (_LIMIT_16 if cache.itemsize == 2 else _LIMIT_8)
    if scale == _ZERO:
        scale = _ONE
    for d in range(len(x)):
        cache[d] = np.int16(np.rint(x[d] / scale))
    return scale


@compiled
def _turned(x, turn, swapped, centred, out, unit, lanes):  # type: ignore[no-untyped-def]
    """out [D] = norm of x, its pairs (i, i + D / 2) turned: unit * turn + unit with halves exchanged * swapped."""
    _normalise(x, centred, unit, lanes)
    half = len(x) // 2
    for d in range(half):
        out[d] = unit[d] * turn[d] + unit[half + d] * swapped[d]
        out[half + d] = unit[half + d] * turn[half + d] + unit[d] * swapped[half + d]


@compiled
def _score(q, keys, scores):  # type: ignore[no-untyped-def]
    """scores [n] = q [D] @ keys; n is a multiple of SPAN, D of 8."""
    for t in range(len(scores)):
        scores[t] = _ZERO
    for block in range(len(scores) // SPAN):
        here, every = scores[block * SPAN :][:SPAN], keys[block]
        for d in range(0, len(q), 8):
            q0, q1, q2, q3, q4, q5, q6, q7 = q[d], q[d + 1], q[d + 2], q[d + 3], q[d + 4], q[d + 5], q[d + 6], q[d + 7]
            part = every[d * SPAN :][: 8 * SPAN]
            for t in range(SPAN):
                s = here[t]
                s = s + q0 * np.float32(part[t])
                s = s + q1 * np.float32(part[SPAN + t])
                s = s + q2 * np.float32(part[2 * SPAN + t])
                s = s + q3 * np.float32(part[3 * SPAN + t])
                s = s + q4 * np.float32(part[4 * SPAN + t])
                s = s + q5 * np.float32(part[5 * SPAN + t])
                s = s + q6 * np.float32(part[6 * SPAN + t])
                s = s + q7 * np.float32(part[7 * SPAN + t])
                here[t] = s


@compiled
def _weights(scores, scales, value_scales, count, powers, lanes):  # type: ignore[no-untyped-def]
    """scores [n] = softmax of scores * scales over the first ``count``, 0 after them, times value_scales."""
    n = len(scores)
    for t in range(n):
        scores[t] *= scales[t]
    for t in range(count, n):
        scores[t] = _NEVER
    for j in range(LANES):
        lanes[j] = _NEVER
    for start in range(0, n, LANES):
        part = scores[start : start + LANES]
        for j in range(LANES):
            lanes[j] = max(lanes[j], part[j])
    top = lanes[0]
    for j in range(1, LANES):
        top = max(top, lanes[j])
    for t in range(n):
        scores[t] -= top
    _exponential(scores, powers[:n])
    for t in range(count, n):
        scores[t] = _ZERO
    share = _ONE / _sum(scores, lanes)
    for t in range(n):
        scores[t] *= share * value_scales[t]


@compiled
def _mix(weights, values, out):  # type: ignore[no-untyped-def]
    """out [D] = weights [n] @ values [n, D]; n is a multiple of 4."""
    for d in range(len(out)):
        out[d] = _ZERO
    for t in range(0, len(weights), 4):
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        v0, v1, v2, v3 = values[t], values[t + 1], values[t + 2], values[t + 3]
        for d in range(len(out)):
            s = out[d]
            s = s + w0 * np.float32(v0[d])
            s = s + w1 * np.float32(v1[d])
            s = s + w2 * np.float32(v2[d])
            s = s + w3 * np.float32(v3[d])
            out[d] = s


@compiled
def _attend(qkv, turn, swapped, centred, rows, positions, places, keys, key_scales, values, value_scales, out, vectors, scores, powers, lanes):  # type: ignore[no-untyped-def]  # fmt: skip
    """qkv [Q, 3 H D and more] -> out [Q, H D]; keys and values of the queries are kept first, so queries see each other."""
    count, heads, dim = len(rows), values.shape[1], values.shape[3]
    turned, unit = vectors[0], vectors[1]
    for i in range(count):
        row, at, place = rows[i], positions[i], places[i]
        for part in range(2 * heads):  # queries, then keys
            h, kind, here = part % heads, part // heads, qkv[i, part * dim :][:dim]
            _turned(here, turn[place, kind], swapped[place, kind], centred, turned, unit, lanes)
            if kind == 0:
                for d in range(dim):
                    here[d] = turned[d]
            else:
                key_scales[row, h, at] = _kept(turned, keys[row, h, at // SPAN, at % SPAN :: SPAN])
                v = qkv[i, (2 * heads + h) * dim :][:dim]
                value_scales[row, h, at] = _kept(v, values[row, h, at, ::1])
    for i in range(count):
        row, length = rows[i], positions[i] + 1
        spans, n = (length + SPAN - 1) // SPAN * SPAN, (length + LANES - 1) // LANES * LANES
        for h in range(heads):
            _score(qkv[i, h * dim :][:dim], keys[row, h], scores[:spans])
            _weights(scores[:n], key_scales[row, h, :n], value_scales[row, h, :n], length, powers, lanes)
            _mix(scores[:n], values[row, h], out[i, h * dim :][:dim])


@compiled
def _gate(h, hidden, out, powers):  # type: ignore[no-untyped-def]
    """out [Q, hidden] = silu(gate) * value, of h [Q, gates, values and more]."""
    for i in range(h.shape[0]):
        gate, value, row = h[i, :hidden], h[i, hidden : 2 * hidden], out[i]
        for j in range(hidden):
            row[j] = -gate[j]
        _exponential(row, powers[:hidden])
        for j in range(hidden):
            row[j] = gate[j] / (_ONE + row[j]) * value[j]


@compiled
def decode(tokens, rows, places, prefix, centred, inputs, gains, matrices, scales, turns, cache, scratch, logits):  # type: ignore[no-untyped-def]  # fmt: skip
    """Image ids int64 [Q] at int64 ``places`` of int64 ``rows`` -> logits [Q, V and more] of the places after them.

    inputs: vectors of codes [V, dim] and of places [N, dim]. gains: of the norms before the attention and before the
    gated layer of each block, and of the one at the end [2 L + 1, dim]. matrices, scales: query-key-value, out, up and
    down [L, ...], and head. turns: [L, N, 2, D] twice. cache: keys, their scales, values, their scales. scratch: see
    ``CompiledSteps``. False, and nothing is done, where an id, row or place is outside of the model or the cache.
    """
    table, place_vectors = inputs
    w_qkv, w_out, w_up, w_down, w_head = matrices
    s_qkv, s_out, s_up, s_down, s_head = scales
    turn, swapped = turns
    keys, key_scales, values, value_scales = cache
    all_x, all_unit, all_qkv, all_mixed, all_added, all_h, all_gated, sums, vectors, scores, powers, lanes = scratch
    n, layers = len(tokens), len(w_qkv)
    x, unit, qkv, mixed, added = all_x[:n], all_unit[:n], all_qkv[:n], all_mixed[:n], all_added[:n]
    h, gated = all_h[:n], all_gated[:n]
    for i in range(n):
        if min(tokens[i], rows[i], places[i]) < 0 or tokens[i] >= len(table):
            return False
        if rows[i] >= keys.shape[1] or places[i] >= len(place_vectors):
            return False
    positions = places + prefix
    for i in range(n):
        row, code, place = x[i], table[tokens[i]], place_vectors[places[i]]
        for j in range(x.shape[1]):
            row[j] = code[j] + place[j]
    for stage in range(
        4 * layers + 1
    ):  # one call of each kernel: each is compiled into this function where it is called
        layer, kind = stage // 4, stage % 4
        if kind % 2 == 0:
            _normalise_rows(x, gains[stage // 2], centred, unit, lanes)
        if layer == layers:
            source, w, s, out = unit, w_head, s_head, logits
        elif kind == 0:
            source, w, s, out = unit, w_qkv[layer], s_qkv[layer], qkv
        elif kind == 1:
            _attend(qkv, turn[layer], swapped[layer], centred, rows, positions, places, keys[layer], key_scales[layer], values[layer], value_scales[layer], mixed, vectors, scores, powers, lanes)  # fmt: skip
            source, w, s, out = mixed, w_out[layer], s_out[layer], added
        elif kind == 2:
            source, w, s, out = unit, w_up[layer], s_up[layer], h
        else:
            _gate(h, gated.shape[1], gated, powers)
            source, w, s, out = gated, w_down[layer], s_down[layer], added
        _multiply(source, w, s, out, sums)
        if kind % 2 == 1:
            _add(x, added)
    return True


PARTS = tuple(part for part in globals().values() if hasattr(part, "py_func"))
"""Every compiled function here."""
