// Long-term memory: which rows of a table a token recalls, what they sum to, and how recalled rows learn.
//
//   halves   s[h, p, i] = q[h, p] . key[h, p, i]      row (i, j) scores s[h, 0, i] + s[h, 1, j], row = i side + j
//   recall   the A best rows of each head, by softmax of their scores        y[t] = sum_a strength[t, a] table[row[t, a]]
//
// The A best rows are among the pairs of the A best of either half: with both in order, pair (i, j) has at least
// (i + 1) (j + 1) - 1 pairs before it, so that about A ln A pairs are looked at, not side^2.
#pragma once
#include <algorithm>
#include <cmath>

#include "packing.hpp"
#include "route.hpp"

struct Recall {
    int64_t tokens, heads, side, awake, width, threads;  // width: of half a query
};

// One head of one token: its two rows of scores to the A best rows, the best first, and their shares.
struct Best {
    int64_t *halves, *woken;
    float* sums;
    static size_t bytes(int64_t awake) { return Scratch::size<int64_t>(3 * awake) + Scratch::size<float>(awake); }
    Best(Scratch& memory, int64_t awake)
        : halves(memory.take<int64_t>(2 * awake)), woken(memory.take<int64_t>(awake)), sums(memory.take<float>(awake)) {}

    void find(const float* first, const float* second, int64_t side, int64_t awake, int64_t* rows, float* strengths) {
        pick(first, side, awake, halves), pick(second, side, awake, halves + awake);
        // each i goes along its own j; the best of the fronts is taken next: a front moves at most as far as it may
        int64_t* front = woken;
        std::fill_n(front, awake, 0);
        for (int64_t i = 0; i < awake; ++i) sums[i] = first[halves[i]] + second[halves[awake]];
        int64_t open = 1;  // front i > 0 opens once front i - 1 has moved
        float peak = 0, total = 0;
        for (int64_t a = 0; a < awake; ++a) {
            int64_t best = 0;
            for (int64_t i = 1; i < open; ++i)
                if (sums[i] > sums[best]) best = i;
            const float score = sums[best];
            if (a == 0) peak = score;
            rows[a] = halves[best] * side + halves[awake + front[best]];
            strengths[a] = exponential(score - peak), total += strengths[a];
            if (best == open - 1 && open < awake) ++open;
            sums[best] = ++front[best] < awake ? first[halves[best]] + second[halves[awake + front[best]]] : -INFINITY;
        }
        for (int64_t a = 0; a < awake; ++a) strengths[a] /= total;
    }
};

// Scores (2 H, T, side) to rows and strengths (T, H A).
inline void recall_rows(const Recall& r, const float* scores, int64_t* rows, float* strengths) {
    const int64_t plane = r.tokens * r.side;
#pragma omp parallel num_threads(int(std::clamp<int64_t>(r.tokens / 4, 1, r.threads)))
    {
        static thread_local Scratch memory;
        memory.reset(Best::bytes(r.awake));
        Best best(memory, r.awake);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < r.tokens; ++t)
            for (int64_t h = 0; h < r.heads; ++h) {
                const float* half = scores + 2 * h * plane + t * r.side;
                const int64_t at = (t * r.heads + h) * r.awake;
                best.find(half, half + plane, r.side, r.awake, rows + at, strengths + at);
            }
    }
}

// From the slopes of strengths (T, H A) to those of queries (T, H, 2, K) and keys (H, 2, side, K): only who was recalled.
inline void recall_back(const Recall& r, const int64_t* rows, const float* strengths, const float* grad, const float* query, const float* keys,
                        float* slopes, float* grad_query, float* grad_keys) {
    const int64_t awake = r.awake, width = r.width;
#pragma omp parallel for schedule(static) num_threads(int(r.threads))
    for (int64_t th = 0; th < r.tokens * r.heads; ++th) {
        const int64_t at = th * awake, h = th % r.heads;
        float mean = 0;
        for (int64_t a = 0; a < awake; ++a) mean += strengths[at + a] * grad[at + a];
        float *to = grad_query + th * 2 * width;
        std::fill_n(to, 2 * width, 0.f);
        for (int64_t a = 0; a < awake; ++a) {
            const float slope = slopes[at + a] = strengths[at + a] * (grad[at + a] - mean);
            const float* __restrict first = keys + (2 * h * r.side + rows[at + a] / r.side) * width;
            const float* __restrict second = keys + ((2 * h + 1) * r.side + rows[at + a] % r.side) * width;
            for (int64_t k = 0; k < width; ++k) to[k] += slope * first[k];
            for (int64_t k = 0; k < width; ++k) to[width + k] += slope * second[k];
        }
    }
    // a half of a head's keys belongs to one thread, and is summed in the order of the tokens
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(r.threads))
    for (int64_t hp = 0; hp < 2 * r.heads; ++hp) {
        float* own = grad_keys + hp * r.side * width;
        std::fill_n(own, r.side * width, 0.f);
        for (int64_t t = 0; t < r.tokens; ++t) {
            const int64_t at = (t * r.heads + hp / 2) * awake;
            const float* __restrict from = query + (t * 2 * r.heads + hp) * width;
            for (int64_t a = 0; a < awake; ++a) {
                const int64_t key = hp % 2 ? rows[at + a] % r.side : rows[at + a] / r.side;
                float* __restrict to = own + key * width;
                const float slope = slopes[at + a];
                for (int64_t k = 0; k < width; ++k) to[k] += slope * from[k];
            }
        }
    }
}

// Rows of a table of either number type, `awake` of them for each token (those of all its heads).
struct RowsCall {
    const void* table;
    int64_t is_bf16, width;
    const int64_t* rows;
    const float* strengths;
    int64_t tokens, awake, threads;
    template <class Work> void typed(Work work) const {
        is_bf16 ? work(static_cast<const bf16*>(table)) : work(static_cast<const float*>(table));
    }
};

// y[t] = sum_a strength[t, a] table[row[t, a]], where rows of `row_bytes` are packed.
inline void read_packed_rows(const RowsCall& c, Format format, int64_t row_bytes, float* y) {
    constexpr int64_t AHEAD = 4;
    const uint8_t* table = static_cast<const uint8_t*>(c.table);
#pragma omp parallel num_threads(int(std::clamp<int64_t>(c.tokens * c.awake * c.width >> 14, 1, c.threads)))
    {
        static thread_local Scratch memory;
        memory.reset(Scratch::size<float>(c.width));
        float* __restrict plain = memory.take<float>(c.width);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < c.tokens; ++t) {
            float* __restrict to = y + t * c.width;
            std::fill_n(to, c.width, 0.f);
            const int64_t *mine = c.rows + t * c.awake, *last = c.rows + c.tokens * c.awake - 1;
            for (int64_t a = 0; a < c.awake; ++a) {
                const uint8_t* next = table + *std::min(mine + a + AHEAD, last) * row_bytes;
                for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(next + byte);
                unpack_one(format, table + mine[a] * row_bytes, c.width, plain);
                const float strength = c.strengths[t * c.awake + a];
                for (int64_t d = 0; d < c.width; ++d) to[d] += strength * plain[d];
            }
        }
    }
}

// y[t] = sum_a strength[t, a] table[row[t, a]]
template <class T> inline void read_rows(const RowsCall& c, const T* table, float* y) {
    constexpr int64_t AHEAD = 4;
#pragma omp parallel for schedule(static) num_threads(int(std::clamp<int64_t>(c.tokens * c.awake * c.width >> 14, 1, c.threads)))
    for (int64_t t = 0; t < c.tokens; ++t) {
        float* __restrict to = y + t * c.width;
        std::fill_n(to, c.width, 0.f);
        const int64_t *mine = c.rows + t * c.awake, *last = c.rows + c.tokens * c.awake - 1;
        for (int64_t a = 0; a < c.awake; ++a) {
            const char* next = reinterpret_cast<const char*>(table + *std::min(mine + a + AHEAD, last) * c.width);
            for (size_t byte = 0; byte < c.width * sizeof(T); byte += 64) __builtin_prefetch(next + byte);
            const T* __restrict from = table + mine[a] * c.width;
            const float strength = c.strengths[t * c.awake + a];
            for (int64_t d = 0; d < c.width; ++d) to[d] += strength * widen(from[d]);
        }
    }
}

// Slots by the row they name: `order` (S,) lists slots row by row, `named` the rows that are named at all, in order, and
// slots bounds[i] .. bounds[i + 1] of `order` name the i-th. Returns how many are named. `counts` (table's rows + 1) is scratch.
inline int64_t group_slots(const int64_t* rows, int64_t slots, int64_t table_rows, int64_t* counts, int32_t* order, int64_t* named, int64_t* bounds) {
    std::fill_n(counts, table_rows + 1, 0);
    for (int64_t s = 0; s < slots; ++s) ++counts[rows[s]];
    int64_t found = 0, at = 0;
    for (int64_t row = 0; row < table_rows; ++row) {
        const int64_t here = counts[row];
        counts[row] = at;
        if (here) named[found] = row, bounds[found++] = at;
        at += here;
    }
    bounds[found] = at;
    for (int64_t s = 0; s < slots; ++s) order[counts[rows[s]]++] = int32_t(s);
    return found;
}

// Slopes of the strengths (T, A), and of each named row; either may be null.
template <class T> inline void rows_back(const RowsCall& c, const T* table, const float* grad, const int32_t* order, const int64_t* bounds, int64_t found,
                                         float* grad_strengths, float* grad_rows) {
    if (grad_strengths)
#pragma omp parallel for schedule(static) num_threads(int(c.threads))
        for (int64_t s = 0; s < c.tokens * c.awake; ++s) {
            const T* __restrict from = table + c.rows[s] * c.width;
            const float* __restrict slope = grad + s / c.awake * c.width;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < c.width; ++d) sum += slope[d] * widen(from[d]);
            grad_strengths[s] = sum;
        }
    if (grad_rows)
#pragma omp parallel for schedule(dynamic, 256) num_threads(int(c.threads))
        for (int64_t i = 0; i < found; ++i) {
            float* __restrict to = grad_rows + i * c.width;
            std::fill_n(to, c.width, 0.f);
            for (int64_t s = bounds[i]; s < bounds[i + 1]; ++s) {
                const float* __restrict slope = grad + order[s] / c.awake * c.width;
                const float strength = c.strengths[order[s]];
                for (int64_t d = 0; d < c.width; ++d) to[d] += strength * slope[d];
            }
        }
}

// Rows that learn by themselves: Adam with one second moment for a row, and the first in half the bits.
//
//   g = sum of the slopes that name the row      m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) mean(g^2)
//   row -= rate (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)              n: how often the row was recalled so far
//
// A row that was not recalled is not visited: it neither moves nor forgets.
struct RowsStep {
    void* table;
    int64_t is_bf16, width;
    bf16* first;         // (rows, D)
    float* second;       // (rows,)
    int32_t* recalled;   // (rows,): n
    double rate, beta1, beta2, epsilon;
    int64_t threads;
};

template <class T> inline void step_rows(const RowsStep& s, T* table, const float* slopes, const int32_t* order, const int64_t* named, const int64_t* bounds, int64_t found) {
    const float b1 = float(s.beta1), b2 = float(s.beta2);
#pragma omp parallel num_threads(int(s.threads))
    {
        static thread_local Scratch memory;
        memory.reset(Scratch::size<float>(s.width));
        float* __restrict slope = memory.take<float>(s.width);
#pragma omp for schedule(dynamic, 256)
        for (int64_t i = 0; i < found; ++i) {
            const int64_t row = named[i];
            std::fill_n(slope, s.width, 0.f);
            for (int64_t at = bounds[i]; at < bounds[i + 1]; ++at) {
                const float* __restrict from = slopes + order[at] * s.width;
                for (int64_t d = 0; d < s.width; ++d) slope[d] += from[d];
            }
            float squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t d = 0; d < s.width; ++d) squares += slope[d] * slope[d];
            const float n = float(++s.recalled[row]);
            const float v = s.second[row] = b2 * s.second[row] + (1 - b2) * squares / float(s.width);
            const float size = std::sqrt(v / (1 - std::pow(b2, n))) + float(s.epsilon);
            const float pace = float(s.rate) / ((1 - std::pow(b1, n)) * size);
            bf16* __restrict m = s.first + row * s.width;
            T* __restrict to = table + row * s.width;
            for (int64_t d = 0; d < s.width; ++d) {
                const float moved = b1 * widen(m[d]) + (1 - b1) * slope[d];
                m[d] = narrow<bf16>(moved);
                to[d] = narrow<T>(widen(to[d]) - pace * moved);
            }
        }
    }
}
