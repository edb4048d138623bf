// CRC-32 as zlib has it, of what comes from disk: it has to be much quicker than the disk, or it takes a core from the
// threads that compute.
//
// A message is a polynomial over bits, its CRC the remainder by P. Sixteen bytes that lie 64 before the end weigh as much
// as their product with x^512 mod P there: four registers walk on by a carry-less product each (Gopal et al. 2009, "Fast
// CRC computation for generic polynomials using PCLMULQDQ"), and what they leave is summed up with tables, byte by byte.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__PCLMUL__) && defined(__SSE4_1__)
#include <immintrin.h>
#endif

// The sum so far carried on over `count` bytes, eight at a time; both without the inversion at begin and end.
inline uint32_t crc32_by_table(uint32_t crc, const char* data, int64_t count) {
    static const auto table = [] {
        std::vector<uint32_t> all(8 * 256);
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; ++bit) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
            all[i] = c;
        }
        for (int s = 1; s < 8; ++s)
            for (uint32_t i = 0; i < 256; ++i) all[s * 256 + i] = (all[(s - 1) * 256 + i] >> 8) ^ all[all[(s - 1) * 256 + i] & 255];
        return all;
    }();
    const uint32_t* t = table.data();
    for (; count >= 8; count -= 8, data += 8) {
        uint32_t low, high;
        std::memcpy(&low, data, 4), std::memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = t[7 * 256 + (low & 255)] ^ t[6 * 256 + (low >> 8 & 255)] ^ t[5 * 256 + (low >> 16 & 255)] ^ t[4 * 256 + (low >> 24)] ^
              t[3 * 256 + (high & 255)] ^ t[2 * 256 + (high >> 8 & 255)] ^ t[256 + (high >> 16 & 255)] ^ t[high >> 24];
    }
    for (; count > 0; --count, ++data) crc = t[(crc ^ uint8_t(*data)) & 255] ^ (crc >> 8);
    return crc;
}

inline uint32_t crc32(const char* data, int64_t count) {
    uint32_t crc = ~0u;
#if defined(__PCLMUL__) && defined(__SSE4_1__)
    constexpr int64_t LANE = 16, STRIDE = 4 * LANE;
    if (count >= 2 * STRIDE) {
        const auto load = [&](int64_t at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at)); };
        const auto walk = [](__m128i x, __m128i by) {
            return _mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11));
        };
        // x^(n + 32) and x^(n - 32) mod P for n bits of way, bits in reverse: 512, then 128
        const __m128i far = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), near = _mm_set_epi64x(0xccaa009e, 0x1751997d0);
        __m128i lanes[4];
        for (int l = 0; l < 4; ++l) lanes[l] = load(l * LANE);
        lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(int(crc)));
        for (data += STRIDE, count -= STRIDE; count >= STRIDE; data += STRIDE, count -= STRIDE)
#pragma GCC unroll 4
            for (int l = 0; l < 4; ++l) lanes[l] = _mm_xor_si128(walk(lanes[l], far), load(l * LANE));
        for (int l = 1; l < 4; ++l) lanes[l] = _mm_xor_si128(walk(lanes[l - 1], near), lanes[l]);
        char left[LANE];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(left), lanes[3]);
        crc = crc32_by_table(0, left, LANE);
    }
#endif
    return ~crc32_by_table(crc, data, count);
}
