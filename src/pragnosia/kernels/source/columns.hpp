// Units of few neurons, as cortical columns are: rows of `down` too short to fill a register, units so small that what
// follows one in memory is asleep, and neurons that compete inside a unit.
#pragma once
#include <algorithm>
#include <cmath>

#include "numbers.hpp"

constexpr int LINES = 4;              // weight rows read side by side
constexpr int64_t NARROW_TILE = 64;   // outputs; threads part on such boundaries, so that sums do not depend on them
constexpr int64_t LARGEST_RIVALRY = 256;  // neurons that may compete with each other (model/organs.py)

// Weights a step takes from a row: a register of words, each one float or two bfloat16.
template <class W> constexpr int64_t STEP = LANES * 4 / sizeof(W);

// The rows of a unit that a thread reads, LINES at a time: `some` rows of each of `parts` parts `width` rows apart; and
// `next`, where its next rows begin, which only the router knows.
template <class W> struct RowBlocks {
    const W* base;
    int64_t pitch, width, some;
    int parts;
    const W* next;

    const W* at(int64_t part, int64_t row) const { return base + (part * width + row) * pitch; }
    // From these rows to those that are read two calls later, in values.
    int64_t ahead(int64_t part, int64_t row) const {
        const int64_t blocks = (some + LINES - 1) / LINES, later = part * blocks + row / LINES + 2, over = later - parts * blocks;
        if (over < 0) return at(later / blocks, later % blocks * LINES) - at(part, row);
        return next ? (intptr_t(next + over * LINES * pitch) - intptr_t(at(part, row))) / int64_t(sizeof(W)) : 0;
    }
};

// y[d] += sum_f down[d, f] p[f] for neighbouring d: a register holds several rows, and four are folded at once.
template <class W> struct NarrowRows {
    static constexpr int64_t AHEAD = 16 * STEP<W>;  // a KiB of weights
    const W* down;
    int64_t width, count;  // F, and how many d
    const W* next;         // where the same rows of the next unit lie; null after the last

    static int64_t lanes(int64_t width) { return width * int64_t(sizeof(W)) / 4; }
    static bool takes(int64_t width) {
        const int64_t n = lanes(width);
        return (n == 2 || n == 4 || n == 8) && n < LANES && n * 4 == width * int64_t(sizeof(W));
    }
    void add(const float* p, float* y) const {
        // a unit whose neurons are all silent has nothing to say, and its rows are not read
        if (std::all_of(p, p + width, [](float value) { return value == 0.f; })) return;
        switch (lanes(width)) {
            case 2: return add_rows<2>(p, y);
            case 4: return add_rows<4>(p, y);
            default: return add_rows<8>(p, y);
        }
    }

  private:
    template <int lanes> void add_rows(const float* p, float* y) const {
        constexpr int64_t rows = 4 * LANES / lanes;
        vec even, odd;  // against bfloat16, whose words hold two weights
        for (int lane = 0; lane < LANES; ++lane)
            if constexpr (sizeof(W) == 2) even[lane] = p[2 * (lane % lanes)], odd[lane] = p[2 * (lane % lanes) + 1];
            else even[lane] = p[lane % lanes];
        int64_t d = 0;
        for (; d + rows <= count; d += rows) {
            const W* at = down + d * width;
            const int64_t over = d * width + AHEAD - count * width;
            const W* soon = over < 0 ? at + AHEAD : next ? next + over : at;
            vec part[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                __builtin_prefetch(soon + i * STEP<W>);
                const bits words = *reinterpret_cast<const bits*>(at + i * STEP<W>);
                if constexpr (sizeof(W) == 2) part[i] = (vec)(words << 16) * even + (vec)(words & 0xffff0000u) * odd;
                else part[i] = (vec)words * even;
            }
            fold<lanes>(part, y + d);
        }
        for (; d < count; ++d)
            for (int64_t f = 0; f < width; ++f) y[d] += widen(down[d * width + f]) * p[f];
    }
    // Every `lanes` neighbours of four registers are one sum.
    template <int lanes> static void fold(const vec part[4], float* y) {
#if defined(__AVX512F__)
        if constexpr (lanes >= 4) {
            const __m512 a = (__m512)part[0], b = (__m512)part[1], c = (__m512)part[2], d = (__m512)part[3];
            const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            // every quarter now holds the sums of each register's quarter
            const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
            if constexpr (lanes == 4) {
                const __m512i turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_permutexvar_ps(turn, all)));
            } else {
                const __m512i turn = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 8, 1, 9, 2, 10, 3, 11);
                const __m512 halves = _mm512_add_ps(all, _mm512_shuffle_f32x4(all, all, 0xb1));
                const __m256 sums = _mm512_castps512_ps256(_mm512_permutexvar_ps(turn, halves));
                _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), sums));
            }
            return;
        }
#endif
        constexpr int rows = LANES / lanes;
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < rows; ++j) {
                float sum = 0;
                for (int l = 0; l < lanes; ++l) sum += part[i][j * lanes + l];
                y[i * rows + j] += sum;
            }
    }
};

// Which neurons of a unit speak: the `most` largest in size; of equals, the first.
inline void rivals(const float* active, int64_t width, int64_t most, bool* speaks) {
    for (int64_t f = 0; f < width; ++f) {
        const float size = std::fabs(active[f]);
        int64_t larger = 0;
        for (int64_t g = 0; g < width; ++g) {
            const float other = std::fabs(active[g]);
            larger += other > size || (other == size && g < f);
        }
        speaks[f] = larger < most;
    }
}
inline void compete(float* active, int64_t width, int64_t most) {
    if (!most || most >= width) return;
    bool speaks[LARGEST_RIVALRY];
    rivals(active, width, most, speaks);
    for (int64_t f = 0; f < width; ++f) active[f] = speaks[f] ? active[f] : 0.f;
}
// Backward: no slope reaches who was silent. `hidden` holds its gradient in `parts` parts.
inline void compete_back(float* hidden, float* active, int64_t width, int parts, int64_t most) {
    if (!most || most >= width) return;
    bool speaks[LARGEST_RIVALRY];
    rivals(active, width, most, speaks);
    for (int64_t f = 0; f < width; ++f)
        if (!speaks[f]) {
            active[f] = 0.f;
            for (int p = 0; p < parts; ++p) hidden[p * width + f] = 0.f;
        }
}
