// Products straight on packed rows (formats.py): weights read once, in order, and never laid out as a matrix.
//
//   y[o] = sum_g s[o, g] t[g] (sum_k q[o, k] p[k] - z[o, g] sum_k p[k]),   x[k] ~ t[g] p[k], k in group g
//
// The input becomes whole numbers p of 8 bits, a scale t per group of 32: products are sums of whole numbers, four to
// an instruction. That rounds x by 0.5 % (RMS; values normally distributed) and is all that is not exact here.
#pragma once
#include "few.hpp"
#include "pruned.hpp"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// The table of formats.py, by number.
enum Format : int64_t { FP32, BF16, INT8, INT4, INT3, INT2, NF4, BF16_PRUNED, INT8_PRUNED };
constexpr int64_t PACK = 128, GROUP = 32, GROUPS = PACK / GROUP;  // weights of a block, of a group; groups of a block
constexpr int bits_of(Format f) { return f == INT8 ? 8 : f == INT3 ? 3 : f == INT2 ? 2 : 4; }
constexpr bool has_zero_point(Format f) { return f == INT4 || f == INT3 || f == INT2; }
inline int64_t packs(int64_t depth) { return (depth + PACK - 1) / PACK; }
constexpr bool is_pruned(Format f) { return f >= BF16_PRUNED; }
// From one row to the next; plain numbers lie without gaps.
inline int64_t row_bytes_of(Format f, int64_t depth) {
    if (is_pruned(f)) return pruned_bytes(f == INT8_PRUNED, depth);
    return f <= BF16 ? depth * (f == BF16 ? 2 : 4) : round_up(packs(depth) * (16 * bits_of(f) + 2 * GROUPS), 64);
}

// Whether packed rows of a unit's `down` belong to its neurons: there are fewer of them than a block holds.
inline bool turned(Format f, int64_t unit_width) { return f > BF16 && !is_pruned(f) && unit_width < PACK; }

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int WORDS = 16;  // sums in a register
#elif defined(__AVX2__)
constexpr int WORDS = 8;
#else
constexpr int WORDS = 4;
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || !defined(__AVX2__)
constexpr bool UNSIGNED = true;  // bytes multiply up to 255 times -128..127
#else
constexpr bool UNSIGNED = false;  // up to what 16 bits hold in pairs
#endif
constexpr int OCTETS = 4 * WORDS, REGISTERS = PACK / OCTETS;
typedef float wide __attribute__((vector_size(OCTETS), aligned(4), may_alias));
typedef int32_t wholes __attribute__((vector_size(OCTETS), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(OCTETS), aligned(1), may_alias));
typedef uint16_t heads __attribute__((vector_size(OCTETS / 2), aligned(1), may_alias));
static_assert(WORDS % GROUPS == 0, "a lane keeps to its group");

// A vector as products want it; only what `prepare` was asked for is filled in.
struct PreparedVector {
    const float* plain;  // for FP32: the vector itself
    float* split;        // for BF16: see lay_out
    int8_t* codes;       // for the rest: p, dealt like the weights of a block
    float *scales, *sums;  // t of each group, and t times the sum of its codes
    int32_t* starts;       // -128 times the sum of its codes

    PreparedVector() = default;
    // In `memory` of `bytes(depth)`, on a cache line.
    PreparedVector(char* memory, int64_t depth) : plain(nullptr), split(reinterpret_cast<float*>(memory)) {
        codes = reinterpret_cast<int8_t*>(memory);  // a layer has one format, so these share a place
        scales = reinterpret_cast<float*>(memory + round_up(std::max<int64_t>(4 * depth, PACK * packs(depth)), 64));
        sums = scales + groups(depth), starts = reinterpret_cast<int32_t*>(sums + groups(depth));
    }
    static int64_t groups(int64_t depth) { return round_up(GROUPS * packs(depth), 16); }
    static size_t bytes(int64_t depth) {
        return round_up(std::max<int64_t>(4 * depth, PACK * packs(depth)), 64) + 3 * sizeof(float) * groups(depth);
    }
};

constexpr float SILENT = 1e-30f;  // a group that reaches no further is nothing

// 32 values as whole numbers; a NaN or an infinity makes the scale one.
inline float quantise(const float* x, int8_t* codes, int32_t& sum) {
    uint32_t reach = 0;  // as whole numbers, a NaN is greater than any float
    for (int64_t i = 0; i < GROUP; ++i) {
        uint32_t word;
        std::memcpy(&word, x + i, 4);
        word &= 0x7fffffffu;
        reach = word > reach ? word : reach;
    }
    float most;
    std::memcpy(&most, &reach, 4);
    const float inverse = most < SILENT ? 0.f : 127.f / most;
    sum = 0;
    for (int64_t i = 0; i < GROUP; ++i) {
        const float rounded = x[i] * inverse + 12582912.f;  // 1.5 * 2^23 rounds to the nearest integer
        int32_t code;
        std::memcpy(&code, &rounded, 4);
        codes[i] = int8_t(code - 0x4b400000), sum += codes[i];
    }
    return most < SILENT ? 0.f : most / 127.f;
}
inline void deal(const uint32_t* groups, uint32_t* block) {
    for (int64_t i = 0; i < 8; ++i)
        for (int64_t g = 0; g < GROUPS; ++g) block[i * GROUPS + g] = groups[g * 8 + i];
}
inline void collect(const uint32_t* block, uint32_t* groups) {
    for (int64_t g = 0; g < GROUPS; ++g)
        for (int64_t i = 0; i < 8; ++i) groups[g * 8 + i] = block[i * GROUPS + g];
}
// One block of x, dealt; the scale and the sum of codes of its four groups.
inline void quantise_block(const float* x, int8_t* codes, float* scales, float* sums, int32_t* starts) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most[GROUPS];
    for (int g = 0; g < GROUPS; ++g)
        most[g] = _mm512_max_epu32(_mm512_and_si512(_mm512_loadu_si512(x + g * GROUP), magnitude),
                                   _mm512_and_si512(_mm512_loadu_si512(x + g * GROUP + 16), magnitude));
    const __m512i ab = _mm512_max_epu32(_mm512_unpacklo_epi32(most[0], most[1]), _mm512_unpackhi_epi32(most[0], most[1]));
    const __m512i cd = _mm512_max_epu32(_mm512_unpacklo_epi32(most[2], most[3]), _mm512_unpackhi_epi32(most[2], most[3]));
    // every quarter now holds a part of each of the four
    const __m512i all = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128 reach = _mm_castsi128_ps(_mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
    const __mmask8 heard = _mm_cmp_ps_mask(reach, _mm_set1_ps(SILENT), _CMP_NLT_UQ);
    const __m128 scale = _mm_maskz_div_ps(heard, reach, _mm_set1_ps(127.f));
    alignas(16) float inverse[GROUPS];
    _mm_store_ps(inverse, _mm_maskz_div_ps(heard, _mm_set1_ps(127.f), reach));
    __m128 part[2][GROUPS];
    for (int g = 0; g < GROUPS; ++g)
        for (int h = 0; h < 2; ++h) {
            const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(x + g * GROUP + h * 16), _mm512_set1_ps(inverse[g]));
            part[h][g] = _mm_castsi128_ps(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
        }
    __m512i sum = _mm512_setzero_si512();
    for (int h = 0; h < 2; ++h) {
        _MM_TRANSPOSE4_PS(part[h][0], part[h][1], part[h][2], part[h][3]);
        for (int i = 0; i < 4; ++i) _mm_storeu_ps(reinterpret_cast<float*>(codes + h * 64 + i * 16), part[h][i]);
        __m512 dealt = _mm512_castps128_ps512(part[h][0]);
        dealt = _mm512_insertf32x4(_mm512_insertf32x4(_mm512_insertf32x4(dealt, part[h][1], 1), part[h][2], 2), part[h][3], 3);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_castps_si512(dealt));
    }
    const __m256i folded = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(folded), _mm256_extracti128_si256(folded, 1));
    _mm_storeu_ps(scales, scale);
    _mm_storeu_ps(sums, _mm_mul_ps(scale, _mm_cvtepi32_ps(four)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(starts), _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), four), 7));
#else
    alignas(64) int8_t plain[PACK];
    for (int64_t g = 0; g < GROUPS; ++g) {
        int32_t sum;
        scales[g] = quantise(x + g * GROUP, plain + g * GROUP, sum);
        sums[g] = scales[g] * float(sum), starts[g] = -128 * sum;
    }
    deal(reinterpret_cast<const uint32_t*>(plain), reinterpret_cast<uint32_t*>(codes));
#endif
}
// What products with rows of this format want of x (depth,), which must stay where it is.
inline void prepare(Format format, const float* x, int64_t depth, PreparedVector& out) {
    out.plain = x;
    if (format == FP32 || is_pruned(format)) return;
    if (format == BF16) return lay_out<bf16>(x, depth, out.split);
    for (int64_t block = 0; block < packs(depth); ++block) {
        alignas(64) float last[PACK];
        const float* from = x + block * PACK;
        if (const int64_t left = depth - block * PACK; left < PACK) {
            std::memcpy(last, from, left * sizeof(float));
            std::memset(last + left, 0, (PACK - left) * sizeof(float));
            from = last;
        }
        const int64_t at = block * GROUPS;
        quantise_block(from, out.codes + block * PACK, out.scales + at, out.sums + at, out.starts + at);
    }
    for (int64_t g = GROUPS * packs(depth); g < PreparedVector::groups(depth); ++g) out.scales[g] = out.sums[g] = 0, out.starts[g] = 0;
}

inline words load_words(const uint8_t* at) { return *reinterpret_cast<const words*>(at); }
inline words all_bytes(uint32_t byte) { return words{} + byte * 0x01010101u; }

// The fields of `size` bits of a plane, as the bytes of the registers they fill.
template <int size> inline void fields(const uint8_t* plane, words out[REGISTERS]) {
    constexpr int bytes = 16 * size;  // of the plane; byte i holds codes i, i + bytes, ...
    const words mask = all_bytes((1u << size) - 1);
    if constexpr (bytes >= OCTETS) {
        constexpr int parts = bytes / OCTETS;
#pragma GCC unroll 8
        for (int p = 0; p < parts; ++p) {
            const words all = load_words(plane + p * OCTETS);
#pragma GCC unroll 8
            for (int f = 0; f < 8 / size; ++f) out[f * parts + p] = size == 8 ? all : (all >> uint32_t(f * size)) & mask;
        }
    } else {
        // the plane repeated along the register, each copy shifted to a field of its own
        constexpr int copies = OCTETS / bytes;
        words all, shifts;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
        if constexpr (bytes == 32) all = (words)_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane)));
        else all = (words)_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(plane)));
#elif defined(__AVX2__)
        all = (words)_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(plane)));
#endif
        for (int w = 0; w < WORDS; ++w) shifts[w] = uint32_t(w * 4 / bytes * size);
#pragma GCC unroll 8
        for (int r = 0; r < REGISTERS; ++r) out[r] = (all >> (shifts + uint32_t(r * copies * size))) & mask;
    }
}

// Codes of a block, as bytes to multiply: unsigned, 128 too large where a code has a sign.
template <Format format> inline void codes_of(const uint8_t* at, words out[REGISTERS]) {
    if constexpr (format == INT8) fields<8>(at, out);
    else if constexpr (format == INT4) fields<4>(at, out);
    else if constexpr (format == INT2) fields<2>(at, out);
    else if constexpr (format == INT3) {
        words high[REGISTERS];
        fields<2>(at, out), fields<1>(at + 32, high);
#pragma GCC unroll 8
        for (int r = 0; r < REGISTERS; ++r) out[r] |= high[r] << 2;
    } else {
        alignas(16) static constexpr uint8_t table[16] = {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255};
        fields<4>(at, out);
#pragma GCC unroll 8
        for (int r = 0; r < REGISTERS; ++r) {
#if defined(__AVX2__)
            const __m128i entries = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
            if constexpr (WORDS == 8) out[r] = (words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), (__m256i)out[r]);
#if defined(__AVX512BW__)
            else out[r] = (words)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), (__m512i)out[r]);
#endif
#else
            uint8_t* bytes = reinterpret_cast<uint8_t*>(out + r);
            for (int i = 0; i < OCTETS; ++i) bytes[i] = table[bytes[i]];
#endif
        }
    }
}

// sum += four products in each word.
template <Format format> inline wholes multiply(wholes sum, words weights, const int8_t* x) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (wholes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_loadu_si512(x));
#elif defined(__AVX2__)
    const __m256i input = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
#if defined(__AVXVNNI__)
    return (wholes)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, input);
#else
    __m256i pairs;
    if constexpr (has_zero_point(format)) {
        pairs = _mm256_maddubs_epi16((__m256i)weights, input);
    } else {
        const __m256i value = (__m256i)(weights ^ all_bytes(128));  // the sign goes to the input, so that pairs fit
        pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(value), _mm256_sign_epi8(input, value));
    }
    return sum + (wholes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
#else
    const uint8_t* w = reinterpret_cast<const uint8_t*>(&weights);
    for (int lane = 0; lane < WORDS; ++lane)
        for (int i = 4 * lane; i < 4 * lane + 4; ++i) sum[lane] += int32_t(w[i]) * int32_t(x[i]);
    return sum;
#endif
}

// One value for each group of a block, in the lanes of its group.
inline wide spread(const float* four) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (wide)_mm512_broadcast_f32x4(_mm_loadu_ps(four));
#elif defined(__AVX2__)
    return (wide)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(four));
#else
    return *reinterpret_cast<const wide*>(four);
#endif
}
template <Format format> inline wholes start(const int32_t* four) {
    if constexpr (UNSIGNED && !has_zero_point(format)) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
        return (wholes)_mm512_zextsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four)));
#elif defined(__AVX2__)
        return (wholes)_mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(four)));
#else
        return *reinterpret_cast<const wholes*>(four);
#endif
    }
    return wholes{};
}

// WORDS headers, a word each; zeros where fewer are `left`.
inline words load_headers(const uint8_t* at, int64_t left) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 there = left >= WORDS ? 0xffff : (1u << left) - 1;
    return (words)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, at));
#else
    heads raw{};
    if (left >= WORDS) raw = *reinterpret_cast<const heads*>(at);
    else std::memcpy(&raw, at, left * 2);
    return __builtin_convertvector(raw, words);
#endif
}
// s of WORDS groups, and s z in steps of z.
template <Format format> struct Header {
    static constexpr float step = float(1 << bits_of(format)) / 64.f;
    wide scale, shift{};
    explicit Header(words raw) {
        if constexpr (has_zero_point(format)) {
            scale = (wide)(((raw >> 6) + (87u << 4)) << 19);
            shift = scale * __builtin_convertvector((wholes)(raw & 63u), wide);
        } else {
            scale = (wide)(raw << 16);
        }
    }
};

constexpr int64_t AT_ONCE = 16;  // blocks whose scales are made ready together

template <Format format, int tokens>
void packed_rows(const uint8_t* rows, int64_t row_bytes, int64_t lines, const PreparedVector* x, int64_t depth, float out[][LINES],
                 int64_t ahead) {
    constexpr int64_t bytes = 16 * bits_of(format);
    const int64_t blocks = packs(depth);
    const uint8_t* row[LINES];
    for (int r = 0; r < LINES; ++r) row[r] = rows + (r < lines ? r : 0) * row_bytes;  // a missing row repeats the first
    wide total[tokens][LINES] = {};
    for (int64_t first = 0; first < blocks; first += AT_ONCE) {
        alignas(64) float scales[tokens][LINES][AT_ONCE * GROUPS];
        const int64_t some = std::min(AT_ONCE, blocks - first), groups = some * GROUPS;
        for (int r = 0; r < LINES; ++r) {
            const uint8_t* at = row[r] + blocks * bytes + first * GROUPS * 2;
            __builtin_prefetch(at + ahead), __builtin_prefetch(at + ahead + 64);
        }
        for (int64_t g = 0; g < groups; g += WORDS) {
            const int64_t from = first * GROUPS + g;
            wide sums[tokens];
            for (int t = 0; t < tokens; ++t) sums[t] = *reinterpret_cast<const wide*>(x[t].sums + from) * Header<format>::step;
#pragma GCC unroll 4
            for (int r = 0; r < LINES; ++r) {
                const Header<format> header(load_headers(row[r] + blocks * bytes + from * 2, groups - g));
#pragma GCC unroll 4
                for (int t = 0; t < tokens; ++t) {
                    *reinterpret_cast<wide*>(scales[t][r] + g) = header.scale * *reinterpret_cast<const wide*>(x[t].scales + from);
                    if constexpr (has_zero_point(format)) total[t][r] -= header.shift * sums[t];
                }
            }
        }
        for (int64_t b = 0; b < some; ++b) {
            const int64_t block = first + b;
#pragma GCC unroll 4
            for (int r = 0; r < LINES; ++r) {
                const uint8_t* at = row[r] + block * bytes;
                __builtin_prefetch(at + ahead);
                if constexpr (format == INT8) __builtin_prefetch(at + ahead + 64);
                words codes[REGISTERS];
                codes_of<format>(at, codes);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; ++t) {
                    wholes sum = start<format>(x[t].starts + block * GROUPS);
#pragma GCC unroll 8
                    for (int k = 0; k < REGISTERS; ++k) sum = multiply<format>(sum, codes[k], x[t].codes + block * PACK + k * OCTETS);
                    total[t][r] += __builtin_convertvector(sum, wide) * spread(scales[t][r] + b * GROUPS);
                }
            }
        }
    }
    for (int t = 0; t < tokens; ++t)
        if constexpr (WORDS == LANES) sums(reinterpret_cast<const vec*>(total[t]), out[t]);
        else
            for (int r = 0; r < LINES; ++r) {
                out[t][r] = 0;
                for (int lane = 0; lane < WORDS; ++lane) out[t][r] += total[t][r][lane];
            }
}
template <class W, int tokens>
void plain_rows(const uint8_t* rows, int64_t row_bytes, int64_t lines, const PreparedVector* x, int64_t depth, float out[][LINES],
                int64_t ahead) {
    const auto input = [&](int64_t t) { return sizeof(W) == 2 ? static_cast<const float*>(x[t].split) : x[t].plain; };
    const int64_t pitch = input(tokens - 1) - input(0), step = tokens > 1 ? pitch / (tokens - 1) : 0;
    bool even = true;  // vectors that lie evenly share one reading
    for (int t = 1; t < tokens; ++t) even &= input(t) == input(0) + t * step;
    const W* w = reinterpret_cast<const W*>(rows);
    ahead /= int64_t(sizeof(W));
    if (even) return dots<W, tokens>(w, row_bytes / sizeof(W), lines, input(0), step, tokens, depth, out, ahead);
    for (int t = 0; t < tokens; ++t) dots<W, 1>(w, row_bytes / sizeof(W), lines, input(t), 0, 1, depth, out + t, ahead);
}

template <class V, int tokens>
void pruned_rows(const uint8_t* rows, int64_t row_bytes, int64_t lines, const PreparedVector* x, int64_t depth, float out[][LINES]) {
    const float* plain[tokens];
    for (int t = 0; t < tokens; ++t) plain[t] = x[t].plain;
    pruned_rows<V, tokens>(rows, row_bytes, lines, plain, depth, out);
}

// out[t][r] = row r of `lines` <= LINES neighbours times x[t], `tokens` <= TOKENS vectors prepared for this format;
// `ahead` [bytes] leads from a row to what will be read two calls later.
template <int tokens = TOKENS>
void packed_dots(Format format, const void* rows, int64_t row_bytes, int64_t lines, const PreparedVector* x, int64_t count,
                 int64_t depth, float out[][LINES], int64_t ahead) {
    if constexpr (tokens > 1)
        if (count < tokens) return packed_dots<tokens - 1>(format, rows, row_bytes, lines, x, count, depth, out, ahead);
    const uint8_t* base = static_cast<const uint8_t*>(rows);
    switch (format) {
        case FP32: return plain_rows<float, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case BF16: return plain_rows<bf16, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case INT8: return packed_rows<INT8, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case INT4: return packed_rows<INT4, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case INT3: return packed_rows<INT3, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case INT2: return packed_rows<INT2, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case NF4: return packed_rows<NF4, tokens>(base, row_bytes, lines, x, depth, out, ahead);
        case BF16_PRUNED: return pruned_rows<bf16, tokens>(base, row_bytes, lines, x, depth, out);
        case INT8_PRUNED: return pruned_rows<int8_t, tokens>(base, row_bytes, lines, x, depth, out);
    }
}

// y (count, outs) = x (count, depth) w' + bias; a tile of rows stays in cache for all of x.
inline void packed_linear(Format format, const void* x, bool x_is_bf16, const void* packed, int64_t row_bytes, const float* bias,
                          int64_t count, int64_t outs, int64_t depth, int64_t threads, void* y) {
    Scratch& scratch = few_scratch();
    const size_t floats = Scratch::size<float>(depth), bytes = round_up(PreparedVector::bytes(depth), 64);
    scratch.reset(count * (floats + bytes + sizeof(PreparedVector)) + 64);
    float* inputs = scratch.take<float>(count * int64_t(floats / sizeof(float)));
    char* memory = scratch.take<char>(count * bytes);
    PreparedVector* prepared = scratch.take<PreparedVector>(count);
    const int team_size = team(outs * row_bytes, threads);
#pragma omp parallel num_threads(team_size)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; ++t) {
            float* input = inputs + t * (floats / sizeof(float));
            read(x, x_is_bf16, t * depth, depth, input);
            prepared[t] = PreparedVector(memory + t * bytes, depth);
            prepare(format, input, depth, prepared[t]);
        }
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < (outs + LINES - 1) / LINES; ++tile) {
            const int64_t o = tile * LINES, lines = std::min<int64_t>(LINES, outs - o);
            for (int64_t first = 0; first < count; first += TOKENS) {
                const int64_t some = std::min<int64_t>(TOKENS, count - first);
                float part[TOKENS][LINES];
                packed_dots(format, static_cast<const uint8_t*>(packed) + o * row_bytes, row_bytes, lines, prepared + first, some, depth, part,
                            2 * LINES * row_bytes);
                for (int64_t t = 0; t < some; ++t) {
                    for (int64_t r = 0; bias && r < lines; ++r) part[t][r] += bias[o + r];
                    write(part[t], lines, y, x_is_bf16, (first + t) * outs + o);
                }
            }
        }
    }
}

// Blocks [from, to) of `value` times a packed row, added to sums that lie as blocks are dealt; what the groups' zero
// points take away is summed apart. `next` is the row after the next.
template <Format format>
void add_row_blocks(const uint8_t* row, int64_t blocks, int64_t from, int64_t to, float value, float* dealt, float* zeros, const uint8_t* next) {
    constexpr int64_t bytes = 16 * bits_of(format);
    constexpr int64_t RUN = 4 * GROUPS;  // neighbours of a block that take four of every group
    if (next) __builtin_prefetch(next + blocks * bytes + from * GROUPS * 2);
    for (int64_t block = from; block < to; ++block) {
        if (next)
            for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(next + block * bytes + line);
        words codes[REGISTERS];
        codes_of<format>(row + block * bytes, codes);
        alignas(64) uint8_t q[PACK];
        std::memcpy(q, codes, PACK);
        float scales[RUN];
        for (int64_t g = 0; g < GROUPS; ++g) {
            uint16_t raw;
            std::memcpy(&raw, row + blocks * bytes + (block * GROUPS + g) * 2, 2);
            const uint32_t word = has_zero_point(format) ? ((raw >> 6) + (87u << 4)) << 19 : uint32_t(raw) << 16;
            float scale;
            std::memcpy(&scale, &word, 4);
            scale *= value;
            zeros[block * GROUPS + g] += scale * (has_zero_point(format) ? float(raw & 63) * (float(1 << bits_of(format)) / 64.f) : 128.f);
            for (int64_t j = 0; j < 4; ++j) scales[g * 4 + j] = scale;
        }
        float* __restrict out = dealt + block * PACK;
        for (int64_t i = 0; i < PACK; i += RUN)
            for (int64_t lane = 0; lane < RUN; ++lane) out[i + lane] += float(q[i + lane]) * scales[lane];
    }
}
inline void add_packed_row(Format format, const uint8_t* row, int64_t blocks, int64_t from, int64_t to, float value, float* dealt,
                           float* zeros, const uint8_t* next) {
    switch (format) {
        case INT8: return add_row_blocks<INT8>(row, blocks, from, to, value, dealt, zeros, next);
        case INT4: return add_row_blocks<INT4>(row, blocks, from, to, value, dealt, zeros, next);
        case INT3: return add_row_blocks<INT3>(row, blocks, from, to, value, dealt, zeros, next);
        case INT2: return add_row_blocks<INT2>(row, blocks, from, to, value, dealt, zeros, next);
        default: return add_row_blocks<NF4>(row, blocks, from, to, value, dealt, zeros, next);
    }
}
