// Products on 2:4 rows (pruned.py): kept values are read in order, and the inputs they stood at are picked from registers.
//
//   y[o] = sum_j v[o, j] x[4 (j / 2) + place[o, j]]
#pragma once
#include "few.hpp"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int64_t KEPT_RUN = 16;  // kept values that share a word of places, and a scale
inline int64_t kept_runs(int64_t depth) { return (depth / 2 + KEPT_RUN - 1) / KEPT_RUN; }
inline int64_t pruned_bytes(bool eight, int64_t depth) {
    return round_up(depth / 2 * (eight ? 1 : 2) + kept_runs(depth) * (eight ? 6 : 4), 64);
}

typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(1), may_alias));
inline vec kept_values(const bf16* at) {
#if defined(__AVX512F__)
    return (vec)load16(at);
#else
    return (vec)(__builtin_convertvector(*reinterpret_cast<const halves*>(at), bits) << 16);
#endif
}
inline vec kept_values(const int8_t* at) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#else
    vec wide;
    for (int lane = 0; lane < LANES; ++lane) wide[lane] = float(at[lane]);
    return wide;
#endif
}
inline float kept_value(const bf16* at) { return widen(*at); }
inline float kept_value(const int8_t* at) { return float(*at); }

// Where LANES kept values stood among their 2 LANES inputs, from the places of LANES values in a word.
inline bits stood(uint32_t word) {
    alignas(64) static constexpr uint32_t shifts[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    alignas(64) static constexpr uint32_t fours[16] = {0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28};
    return ((bits{} + word) >> *reinterpret_cast<const bits*>(shifts) & 3u) + *reinterpret_cast<const bits*>(fours);
}
// Those of 2 LANES neighbours.
inline vec pick(const float* x, bits at) {
#if defined(__AVX512F__)
    return (vec)_mm512_permutex2var_ps(_mm512_loadu_ps(x), (__m512i)at, _mm512_loadu_ps(x + 16));
#elif defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), (__m256i)at);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 8), (__m256i)at);
    return (vec)_mm256_blend_ps(low, high, 0xf0);  // lanes 4 to 7 stood among inputs 8 to 15
#else
    vec picked;
    for (int lane = 0; lane < LANES; ++lane) picked[lane] = x[at[lane]];
    return picked;
#endif
}

// One row, laid open.
template <class V> struct PrunedRow {
    const V* values;
    const uint8_t *places, *scales;
    PrunedRow() = default;
    PrunedRow(const uint8_t* row, int64_t depth)
        : values(reinterpret_cast<const V*>(row)), places(row + depth / 2 * int64_t(sizeof(V))), scales(places + 4 * kept_runs(depth)) {}
    // The places of the values from j on, as far as their run goes.
    uint32_t word(int64_t j) const {
        uint32_t all;
        std::memcpy(&all, places + j / KEPT_RUN * 4, 4);
        return all >> (2 * (j % KEPT_RUN));
    }
    // In every lane; the upper half of a word is a bfloat16 widened. Two bytes before the first scale lie places.
    vec scales_of(int64_t j) const {
        uint32_t word;
        std::memcpy(&word, scales + j / KEPT_RUN * 2 - 2, 4);
        return (vec)((bits{} + word) & 0xffff0000u);
    }
    float scale(int64_t j) const {
        if (sizeof(V) == 2) return 1.f;
        bf16 raw;
        std::memcpy(&raw, scales + j / KEPT_RUN * 2, 2);
        return widen(raw);
    }
};

// `lines` <= LINES neighbouring rows times `tokens` inputs.
template <class V, int tokens>
void pruned_rows(const uint8_t* rows, int64_t row_bytes, int64_t lines, const float* const* x, int64_t depth, float out[][LINES]) {
    const int64_t kept = depth / 2, whole = kept / LANES * LANES;
    const int64_t ahead = 2 * LINES * row_bytes / int64_t(sizeof(V));  // rows lie one after another
    PrunedRow<V> row[LINES];
    for (int r = 0; r < LINES; ++r) row[r] = PrunedRow<V>(rows + (r < lines ? r : 0) * row_bytes, depth);  // a missing row repeats the first
    vec total[tokens][LINES] = {};
    for (int64_t j = 0; j < whole; j += LANES)
#pragma GCC unroll 4
        for (int r = 0; r < LINES; ++r) {
            __builtin_prefetch(row[r].values + j + ahead);
            vec value = kept_values(row[r].values + j);
            if constexpr (sizeof(V) == 1) value *= row[r].scales_of(j);
            const bits at = stood(row[r].word(j / LANES * LANES));
#pragma GCC unroll 4
            for (int t = 0; t < tokens; ++t) total[t][r] += value * pick(x[t] + 2 * j, at);
        }
    for (int t = 0; t < tokens; ++t) {
        sums(total[t], out[t]);
        for (int64_t j = whole; j < kept; ++j)
            for (int r = 0; r < LINES; ++r)
                out[t][r] += kept_value(row[r].values + j) * row[r].scale(j) * x[t][j / 2 * 4 + (row[r].word(j) & 3u)];
    }
}

template <class V, class T> void unpack_pruned(const uint8_t* packed, int64_t depth, T* out) {
    const PrunedRow<V> row(packed, depth);
    for (int64_t k = 0; k < depth; ++k) out[k] = narrow<T>(0.f);
    for (int64_t j = 0; j < depth / 2; ++j)
        out[j / 2 * 4 + (row.word(j) & 3u)] = narrow<T>(kept_value(row.values + j) * row.scale(j));
}
