// Rows into a format, and back. The search is that of formats.py, WORDS groups side by side, one in each lane.
//
//   s, z <- least squares of w ~ s (q - z), q <- round(w / s + z), from a few shrunken ranges; the best is kept
//
// Rounding differs from torch's sums in the last place, so a tie may fall otherwise; what is stored is as good.
#pragma once
#include <omp.h>

#include "packed.hpp"

struct Search {
    const float* shrinks;
    int64_t starts, refinements;
    const float* importance;  // (depth,), or null
};

inline wide select(wholes condition, wide yes, wide no) { return (wide)(((words)condition & (words)yes) | (~(words)condition & (words)no)); }
inline wide least(wide a, wide b) { return select(a < b, a, b); }
inline wide greatest(wide a, wide b) { return select(a > b, a, b); }
inline wide inverse_of(wide value) { return select(value != 0.f, 1.f / value, wide{}); }
inline wide to_nearest(wide value) { return (value + 12582912.f) - 12582912.f; }  // 1.5 * 2^23
inline wide magnitude(wide value) { return (wide)((words)value & 0x7fffffffu); }
inline wide to_bf16(wide value) {
    const words word = (words)value;
    return (wide)((word + 0x7fffu + ((word >> 16) & 1u)) & 0xffff0000u);
}

// WORDS groups: their weights, what they are worth, and the best that was found.
template <Format format, bool weighed> struct Searching {
    static constexpr float top = float((1 << bits_of(format)) - 1), step = float(1 << bits_of(format)) / 64.f;
    wide weight[GROUP], worth[GROUP], code[GROUP];
    wide error = wide{} + INFINITY;
    words header{};

    wide counted(wide value, int64_t i) const {
        if constexpr (weighed) return value * worth[i];
        return value;
    }
    void keep(const wide* codes, words headers, wide sum) {
        const wholes wins = sum < error;
        error = select(wins, sum, error);
        header = (headers & (words)wins) | (header & ~(words)wins);
        for (int64_t i = 0; i < GROUP; ++i) code[i] = select(wins, codes[i], code[i]);
    }
    void run(const Search& search) {
        if constexpr (format == INT8) symmetric();
        else if constexpr (format == NF4) with_table(search);
        else with_zero_point(search);
    }

    void symmetric() {
        wide reach{};
        for (int64_t i = 0; i < GROUP; ++i) reach = greatest(reach, magnitude(weight[i]));
        const wide scale = to_bf16(reach / 127.f), inverse = inverse_of(scale);
        header = (words)scale >> 16;
        for (int64_t i = 0; i < GROUP; ++i)
            code[i] = least(greatest(to_nearest(weight[i] * inverse), wide{} - 127.f), wide{} + 127.f) + 128.f;
    }

    void with_table(const Search& search) {
        constexpr float table[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};
        wide reach{};
        for (int64_t i = 0; i < GROUP; ++i) reach = greatest(reach, magnitude(weight[i]));
        for (int64_t start = 0; start < search.starts; ++start) {
            wide scale = to_bf16(reach * (search.shrinks[start] / 127.f)), codes[GROUP], sum{};
            for (int64_t turn = 0; turn <= search.refinements; ++turn) {
                const wide inverse = inverse_of(scale);
                wide shared{}, square{};
                sum = wide{};
                for (int64_t i = 0; i < GROUP; ++i) {
                    const wide want = weight[i] * inverse;
                    wide value = wide{} + table[0];
                    wholes index{};
#pragma GCC unroll 16
                    for (int k = 0; k < 15; ++k) {
                        const wholes above = want > (table[k] + table[k + 1]) / 2;
                        index -= above;
                        value += (wide)((words)above & (words)(wide{} + (table[k + 1] - table[k])));
                    }
                    codes[i] = __builtin_convertvector(index, wide);
                    shared += counted(value * weight[i], i), square += counted(value * value, i);
                    const wide off = weight[i] - value * scale;
                    sum += counted(off * off, i);
                }
                if (turn < search.refinements) scale = to_bf16(shared * inverse_of(square));
            }
            keep(codes, (words)scale >> 16, sum);
        }
    }

    void with_zero_point(const Search& search) {
        wide low{}, high{}, total{}, mean{};
        for (int64_t i = 0; i < GROUP; ++i) {
            low = least(low, weight[i]), high = greatest(high, weight[i]);
            total += counted(wide{} + 1.f, i), mean += counted(weight[i], i);
        }
        mean /= total;
        for (int64_t start = 0; start < search.starts; ++start) {
            wide scale = (high - low) * (search.shrinks[start] / top), zero = low * inverse_of(scale) * -search.shrinks[start];
            for (int64_t turn = 0; turn < search.refinements; ++turn) {
                const wide inverse = inverse_of(scale);
                wide codes{}, squares{}, shared{};
                for (int64_t i = 0; i < GROUP; ++i) {
                    const wide code = rounded(weight[i] * inverse + zero), some = counted(code, i);
                    codes += some, squares += some * code, shared += some * weight[i];
                }
                const wide middle = codes / total, spread = squares - codes * middle;
                const wholes varied = spread > 1e-5f * squares;
                // a group of one code keeps its z, and its mean says s
                scale = select(varied, (shared - codes * mean) * inverse_of(spread), mean * inverse_of(middle - zero));
                scale = greatest(scale, wide{});
                zero = select(varied, middle - mean * inverse_of(scale), zero);
            }
            // as the header holds them
            const wholes exponent = (wholes)((((words)scale + (1u << 18)) >> 19)) - (87 << 4);
            const wholes at_least = exponent & (exponent > 0), held = (at_least & (at_least < 1023)) | (1023 & (at_least >= 1023));
            const wide steps = least(greatest(to_nearest(zero * (1.f / step)), wide{}), wide{} + 63.f);
            const words headers = ((words)held << 6) | (words)__builtin_convertvector(steps, wholes);
            const Header<format> stored(headers);
            const wide inverse = 1.f / stored.scale;
            wide codes[GROUP], sum{};
            for (int64_t i = 0; i < GROUP; ++i) {
                codes[i] = rounded(weight[i] * inverse + steps * step);
                const wide off = weight[i] - (codes[i] - steps * step) * stored.scale;
                sum += counted(off * off, i);
            }
            keep(codes, headers, sum);
        }
    }
    static wide rounded(wide value) { return least(greatest(to_nearest(value), wide{}), wide{} + top); }
};

// 128 codes into the planes of a block.
template <int size> void to_plane(const uint8_t* codes, int shift, uint8_t* plane) {
    constexpr int bytes = 16 * size, mask = (1 << size) - 1;
    for (int i = 0; i < bytes; ++i) {
        int all = 0;
#pragma GCC unroll 8
        for (int f = 0; f < 8 / size; ++f) all |= ((codes[f * bytes + i] >> shift) & mask) << (f * size);
        plane[i] = uint8_t(all);
    }
}
template <Format format> void to_block(const uint8_t* codes, uint8_t* block) {
    if constexpr (format == INT3) to_plane<2>(codes, 0, block), to_plane<1>(codes, 2, block + 32);
    else to_plane<bits_of(format)>(codes, 0, block);
}

// One row of `packs(depth)` blocks, zeros behind `depth`.
template <Format format, bool weighed> void pack_row(const float* row, const float* worth, const Search& search, int64_t depth, uint8_t* out) {
    const int64_t groups = GROUPS * packs(depth);
    uint8_t* heads_at = out + packs(depth) * 16 * bits_of(format);
    for (int64_t first = 0; first < groups; first += WORDS) {
        const int64_t some = std::min<int64_t>(WORDS, groups - first);
        Searching<format, weighed> all;
        for (int64_t i = 0; i < GROUP; ++i)
            for (int64_t lane = 0; lane < WORDS; ++lane) {
                const int64_t at = (first + std::min(lane, some - 1)) * GROUP + i;
                all.weight[i][lane] = row[at];
                if constexpr (weighed) all.worth[i][lane] = worth[at];
            }
        all.run(search);
        alignas(64) uint8_t codes[WORDS * GROUP], dealt[PACK];
        for (int64_t i = 0; i < GROUP; ++i) {
            const wholes code = __builtin_convertvector(all.code[i], wholes);
            for (int64_t lane = 0; lane < WORDS; ++lane) codes[lane * GROUP + i] = uint8_t(code[lane]);
        }
        for (int64_t g = 0; g < some; g += GROUPS) {
            deal(reinterpret_cast<const uint32_t*>(codes + g * GROUP), reinterpret_cast<uint32_t*>(dealt));
            to_block<format>(dealt, out + (first + g) / GROUPS * 16 * bits_of(format));
        }
        for (int64_t lane = 0; lane < some; ++lane) {
            const uint16_t head = uint16_t(all.header[lane]);
            std::memcpy(heads_at + (first + lane) * 2, &head, 2);
        }
    }
}

// Rows of floats or bfloat16 into a format with groups; false where a number is none, or beyond `largest`.
inline bool pack_rows(Format format, const void* matrix, bool is_bf16, int64_t rows, int64_t depth, const Search& search,
                      float largest, int64_t threads, uint8_t* packed, int64_t row_bytes) {
    Scratch& scratch = few_scratch();
    const int64_t padded = PACK * packs(depth);
    scratch.reset((threads + 1) * Scratch::size<float>(padded));
    float* worth = scratch.take<float>(padded);
    float* copies = scratch.take<float>(threads * int64_t(Scratch::size<float>(padded) / sizeof(float)));
    float most = 0;
    for (int64_t k = 0; search.importance && k < depth; ++k) most = std::max(most, search.importance[k]);
    // what nobody sees still breaks ties
    for (int64_t k = 0; k < padded; ++k)
        worth[k] = (search.importance && k < depth ? search.importance[k] : 0.f) + 1e-6f * most + 1e-30f;
    bool fine = true;
#pragma omp parallel num_threads(int(threads)) reduction(&& : fine)
    {
        float* row = copies + omp_get_thread_num() * int64_t(Scratch::size<float>(padded) / sizeof(float));
        std::fill(row, row + padded, 0.f);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            read(matrix, is_bf16, r * depth, depth, row);
            uint32_t reach = 0;  // as whole numbers, a NaN is greater than any float
            for (int64_t k = 0; k < depth; ++k) {
                uint32_t word;
                std::memcpy(&word, row + k, 4);
                word &= 0x7fffffffu;
                reach = word > reach ? word : reach;
            }
            uint32_t limit;
            std::memcpy(&limit, &largest, 4);
            if (reach > limit) {
                fine = false;
                continue;
            }
            uint8_t* out = packed + r * row_bytes;
            const auto with = [&](auto weighed) {
                constexpr bool w = decltype(weighed)::value;
                switch (format) {
                    case INT8: return pack_row<INT8, false>(row, worth, search, depth, out);
                    case INT4: return pack_row<INT4, w>(row, worth, search, depth, out);
                    case INT3: return pack_row<INT3, w>(row, worth, search, depth, out);
                    case INT2: return pack_row<INT2, w>(row, worth, search, depth, out);
                    default: return pack_row<NF4, w>(row, worth, search, depth, out);
                }
            };
            if (search.importance) with(std::true_type{});
            else with(std::false_type{});
        }
    }
    return fine;
}

// A packed row's values.
template <Format format, class T> void unpack_row(const uint8_t* row, int64_t depth, T* out) {
    const int64_t blocks = packs(depth);
    for (int64_t block = 0; block < blocks; ++block) {
        words codes[REGISTERS];
        codes_of<format>(row + block * 16 * bits_of(format), codes);
        alignas(64) uint32_t groups[PACK / 4];
        collect(reinterpret_cast<const uint32_t*>(codes), groups);
        alignas(64) float values[PACK];
        const uint8_t* q = reinterpret_cast<const uint8_t*>(groups);
        for (int64_t g = 0; g < GROUPS; ++g) {
            uint16_t raw;
            std::memcpy(&raw, row + blocks * 16 * bits_of(format) + (block * GROUPS + g) * 2, 2);
            float scale, zero = 128.f;
            const uint32_t word = has_zero_point(format) ? ((raw >> 6) + (87u << 4)) << 19 : uint32_t(raw) << 16;
            std::memcpy(&scale, &word, 4);
            if (has_zero_point(format)) zero = float(raw & 63) * (float(1 << bits_of(format)) / 64.f);
            for (int64_t i = g * GROUP; i < (g + 1) * GROUP; ++i) values[i] = (float(q[i]) - zero) * scale;
        }
        narrow(values, std::min(PACK, depth - block * PACK), 1.f, out + block * PACK);
    }
}
template <class T> void unpack_one(Format format, const uint8_t* row, int64_t depth, T* to) {
    switch (format) {
        case FP32: narrow(reinterpret_cast<const float*>(row), depth, 1.f, to); break;
        case BF16:
            for (int64_t k = 0; k < depth; ++k) to[k] = narrow<T>(widen(reinterpret_cast<const bf16*>(row)[k]));
            break;
        case INT8: unpack_row<INT8>(row, depth, to); break;
        case INT4: unpack_row<INT4>(row, depth, to); break;
        case INT3: unpack_row<INT3>(row, depth, to); break;
        case INT2: unpack_row<INT2>(row, depth, to); break;
        case NF4: unpack_row<NF4>(row, depth, to); break;
        case BF16_PRUNED: unpack_pruned<bf16>(row, depth, to); break;
        case INT8_PRUNED: unpack_pruned<int8_t>(row, depth, to); break;
    }
}
template <class T>
void unpack_rows(Format format, const uint8_t* packed, int64_t row_bytes, int64_t rows, int64_t depth, int64_t threads, T* out) {
#pragma omp parallel for schedule(static) num_threads(team(rows * depth * sizeof(T), threads))
    for (int64_t r = 0; r < rows; ++r) unpack_one(format, packed + r * row_bytes, depth, out + r * depth);
}
