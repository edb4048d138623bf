// Number formats, vectors of floats, and memory that is kept between calls.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats in a register
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct bf16 {
    uint16_t raw;
};

inline float widen(float value) { return value; }
inline float widen(bf16 value) {
    uint32_t word = uint32_t(value.raw) << 16;
    float result;
    std::memcpy(&result, &word, 4);
    return result;
}

// Round to nearest, ties to even; a NaN stays one.
template <class T> inline T narrow(float value);
template <> inline float narrow<float>(float value) { return value; }
template <> inline bf16 narrow<bf16>(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    return {uint16_t((word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

// The sums of four registers at once.
inline void sums(const vec value[4], float out[4]) {
#if defined(__AVX512F__)
    const __m512 a = (__m512)value[0], b = (__m512)value[1], c = (__m512)value[2], d = (__m512)value[3];
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    // every quarter now holds a part of each of the four
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int r = 0; r < 4; ++r) {
        out[r] = 0;
        for (int lane = 0; lane < LANES; ++lane) out[r] += value[r][lane];
    }
#endif
}

#if defined(__AVX512F__)
inline __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load16(const bf16* from) {
    __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// Transpose 16 x 16 words in place: round s swaps the off-diagonal s x s blocks.
    inline void transpose16(__m512i lines[16]) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
        for (int s = 8; s > 0; s >>= 1) {
            const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(s));
            // lanes 16.. of a two-source permutation come from the second row
            const __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(16 - s));
            const __m512i high = _mm512_mask_add_epi32(
                _mm512_add_epi32(lane, _mm512_set1_epi32(s)), odd, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                if (i & s) continue;
                __m512i first = lines[i], second = lines[i + s];
                lines[i] = _mm512_permutex2var_epi32(first, low, second);
                lines[i + s] = _mm512_permutex2var_epi32(first, high, second);
            }
        }
    }
#endif

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A matrix whose row i lies at base + stride * index[i] (or i, without an index): gathered without a copy.
template <class T> struct Rows {
    const T* base;
    int64_t stride;
    const int32_t* index;
    const T* operator[](int64_t i) const { return base + stride * (index ? index[i] : i); }
};

// The same, when the number type is known only at run time. `as_rows` hands the typed view to `work`.
struct Matrix {
    const void* base;
    bool is_bf16;
    int64_t stride;
    const int32_t* index = nullptr;
    Matrix(const float* base, int64_t stride) : base(base), is_bf16(false), stride(stride) {}
    Matrix(const bf16* base, int64_t stride) : base(base), is_bf16(true), stride(stride) {}
    Matrix(const void* base, bool is_bf16, int64_t stride, const int32_t* index = nullptr)
        : base(base), is_bf16(is_bf16), stride(stride), index(index) {}

    // What is left below the first `down` rows and right of the first `right` columns.
    Matrix shifted(int64_t down, int64_t right) const {
        int64_t values = right + (index ? 0 : down * stride);
        return {static_cast<const char*>(base) + values * (is_bf16 ? 2 : 4), is_bf16, stride, index ? index + down : nullptr};
    }
    template <class Work> void as_rows(Work work) const {
        if (is_bf16) work(Rows<bf16>{static_cast<const bf16*>(base), stride, index});
        else work(Rows<float>{static_cast<const float*>(base), stride, index});
    }
};

// A run of values of either type, into or out of single precision.
inline void widen(const float* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof(float)); }
inline void widen(const bf16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}
inline void narrow(const float* from, int64_t count, float scale, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
}
inline void narrow(const float* from, int64_t count, float scale, bf16* to) {
    int64_t i = 0;
#if defined(__AVX512BF16__)
    for (; i + 16 <= count; i += 16) {
        __m512 values = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(from + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(values));
    }
#endif
    for (; i < count; ++i) to[i] = narrow<bf16>(scale * from[i]);
}
inline void read(const void* base, bool is_bf16, int64_t at, int64_t count, float* out) {
    if (is_bf16) widen(static_cast<const bf16*>(base) + at, count, out);
    else widen(static_cast<const float*>(base) + at, count, out);
}
inline void write(const float* values, int64_t count, void* base, bool is_bf16, int64_t at) {
    if (is_bf16) narrow(values, count, 1.f, static_cast<bf16*>(base) + at);
    else narrow(values, count, 1.f, static_cast<float*>(base) + at);
}

// The same past the cache, for what nobody reads soon: saves fetching each line only to overwrite it.
// `finish_streaming` before another thread may look.
inline void write_past_cache(const float* values, int64_t count, void* base, bool is_bf16, int64_t at) {
#if defined(__AVX512F__)
    float* to = static_cast<float*>(base) + at;
    if (!is_bf16 && count % 16 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
        for (int64_t i = 0; i < count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(values + i));
        return;
    }
#endif
    write(values, count, base, is_bf16, at);
}
inline void finish_streaming() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// Scratch that grows and is never given back before its thread ends: a fresh page costs more than the arithmetic on it.
class Scratch {
    char* memory = nullptr;
    size_t capacity = 0, used = 0;

  public:
    ~Scratch() { std::free(memory); }
    // Forget what was taken and make room for `bytes` in all (each piece rounded up to a cache line).
    void reset(size_t bytes) {
        used = 0;
        if (bytes <= capacity) return;
        std::free(memory);
        capacity = round_up(bytes + bytes / 8, 4096);
        memory = static_cast<char*>(std::aligned_alloc(4096, capacity));
        if (!memory) throw std::bad_alloc();
    }
    template <class T> static size_t size(int64_t count) { return round_up(count * int64_t(sizeof(T)), 64); }
    template <class T> T* take(int64_t count) {
        T* piece = reinterpret_cast<T*>(memory + used);
        used += size<T>(count);
        return piece;
    }
};
