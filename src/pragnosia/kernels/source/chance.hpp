// Gaussian numbers from a counter: whoever knows the seed, the step and the neuron knows the number, in any order.
//
//   words = Philox4x32-10(counter, key)          Salmon et al. 2011, doi:10.1145/2063384.2063405
//   a, b  = sqrt(-2 ln u) (cos 2 pi t, sin 2 pi t)     Box and Muller 1958, doi:10.1214/aoms/1177706645
//
// u = (high 24 bits of a word + 1) 2^-24 lies in (0, 1], t = word 2^-32 as a signed number in [-1/2, 1/2).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.hpp"

constexpr int QUADS = 64;  // counters that are drawn at once
constexpr uint32_t PHILOX_A = 0xD2511F53u, PHILOX_B = 0xCD9E8D57u, WEYL_A = 0x9E3779B9u, WEYL_B = 0xBB67AE85u;

struct Chance {
    uint64_t seed;
    uint32_t stream, step, row;  // the other three words of the counter; the first counts on
};

inline void philox(uint32_t c[4], uint64_t seed) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += WEYL_A, k1 += WEYL_B) {
        const uint64_t a = uint64_t(PHILOX_A) * c[0], b = uint64_t(PHILOX_B) * c[2];
        const uint32_t first = uint32_t(b >> 32) ^ c[1] ^ k0, third = uint32_t(a >> 32) ^ c[3] ^ k1;
        c[0] = first, c[1] = uint32_t(b), c[2] = third, c[3] = uint32_t(a);
    }
}

// Four rows of QUADS words, for the counters from `first` on.
inline void philox_block(const Chance& chance, uint32_t first, uint32_t words[4][QUADS]) {
#if defined(__AVX512F__)
    const __m512i a = _mm512_set1_epi64(PHILOX_A), b = _mm512_set1_epi64(PHILOX_B), lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    constexpr __mmask16 ODD = 0xaaaa;
    for (int at = 0; at < QUADS; at += 32) {
        __m512i c[2][4];  // two sets of sixteen, whose chains of products overlap
        for (int h = 0; h < 2; ++h) {
            c[h][0] = _mm512_add_epi32(_mm512_set1_epi32(int(first) + at + 16 * h), lane);
            c[h][1] = _mm512_set1_epi32(int(chance.stream)), c[h][2] = _mm512_set1_epi32(int(chance.step));
            c[h][3] = _mm512_set1_epi32(int(chance.row));
        }
        uint32_t k0 = uint32_t(chance.seed), k1 = uint32_t(chance.seed >> 32);
        for (int round = 0; round < 10; ++round, k0 += WEYL_A, k1 += WEYL_B) {
            const __m512i key0 = _mm512_set1_epi32(int(k0)), key1 = _mm512_set1_epi32(int(k1));
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                __m512i* w = c[h];
                const __m512i even_a = _mm512_mul_epu32(w[0], a), odd_a = _mm512_mul_epu32(_mm512_srli_epi64(w[0], 32), a);
                const __m512i even_b = _mm512_mul_epu32(w[2], b), odd_b = _mm512_mul_epu32(_mm512_srli_epi64(w[2], 32), b);
                const __m512i high_a = _mm512_mask_mov_epi32(_mm512_srli_epi64(even_a, 32), ODD, odd_a);
                const __m512i high_b = _mm512_mask_mov_epi32(_mm512_srli_epi64(even_b, 32), ODD, odd_b);
                const __m512i low_a = _mm512_mask_mov_epi32(even_a, ODD, _mm512_slli_epi64(odd_a, 32));
                const __m512i low_b = _mm512_mask_mov_epi32(even_b, ODD, _mm512_slli_epi64(odd_b, 32));
                w[0] = _mm512_ternarylogic_epi32(high_b, w[1], key0, 0x96), w[1] = low_b;
                w[2] = _mm512_ternarylogic_epi32(high_a, w[3], key1, 0x96), w[3] = low_a;
            }
        }
        for (int h = 0; h < 2; ++h)
            for (int word = 0; word < 4; ++word) _mm512_storeu_si512(words[word] + at + 16 * h, c[h][word]);
    }
#else
    for (int i = 0; i < QUADS; ++i) {
        uint32_t c[4] = {first + uint32_t(i), chance.stream, chance.step, chance.row};
        philox(c, chance.seed);
        for (int word = 0; word < 4; ++word) words[word][i] = c[word];
    }
#endif
}

// ln u for u in (0, 1]: u = m 2^e with m in [sqrt 1/2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)).
inline float ln(float u) {
    uint32_t word;
    std::memcpy(&word, &u, 4);
    const int32_t exponent = int32_t(word - 0x3f3504f3u) >> 23;
    word -= uint32_t(exponent) << 23;
    float m;
    std::memcpy(&m, &word, 4);
    const float s = (m - 1.f) / (m + 1.f), q = s * s;
    return float(exponent) * 0.69314718056f + 2.f * s * (1.f + q * (1.f / 3 + q * (1.f / 5 + q * (1.f / 7 + q * (1.f / 9)))));
}

// The cosine and sine of 2 pi t, t in [-1/2, 1/2], by those of pi t.
inline void turned(float t, float& cosine, float& sine) {
    const float x = t * 3.14159265359f, q = x * x;
    const float s = x * (1.f + q * (-1.f / 6 + q * (1.f / 120 + q * (-1.f / 5040 + q * (1.f / 362880 + q * (-1.f / 39916800))))));
    const float c = 1.f + q * (-1.f / 2 + q * (1.f / 24 + q * (-1.f / 720 + q * (1.f / 40320 + q * (-1.f / 3628800 + q * (1.f / 479001600))))));
    cosine = 1.f - 2.f * s * s, sine = 2.f * s * c;
}

// exp x for x in [-80, 0].
inline float decay(float x) {
    const float whole = std::nearbyint(x * 1.44269504089f);
    const float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    const float value = 1.f + f * (1.f + f * (1.f / 2 + f * (1.f / 6 + f * (1.f / 24 + f * (1.f / 120 + f * (1.f / 720))))));
    const uint32_t word = uint32_t(int32_t(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &word, 4);
    return value * power;
}

// `count` numbers: counter j gives those at j, j + Q, j + 2 Q and j + 3 Q, where Q = ceil(count / 4).
// `out` has room for 4 Q.
inline void gaussians(const Chance& chance, int64_t count, float* __restrict out) {
    const int64_t quads = (count + 3) / 4;
    uint32_t words[4][QUADS];
    for (int64_t at = 0; at < quads; at += QUADS) {
        philox_block(chance, uint32_t(at), words);
        const int64_t width = std::min<int64_t>(QUADS, quads - at);
        for (int pair = 0; pair < 2; ++pair) {
            const uint32_t *lengths = words[2 * pair], *turns = words[2 * pair + 1];
            float *__restrict one = out + at + 2 * pair * quads, *__restrict other = one + quads;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
                const float length = std::sqrt(-2.f * ln(float(int32_t((lengths[i] >> 8) + 1)) * 0x1p-24f));
                float cosine, sine;
                turned(float(int32_t(turns[i])) * 0x1p-32f, cosine, sine);
                one[i] = length * cosine, other[i] = length * sine;
            }
        }
    }
}
