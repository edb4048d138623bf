// Numbers as GGUF files hold them, in blocks with scales of their own, made bfloat16 as they arrive from disk.
//
//   Q4_0, Q5_0, Q8_0    w = d q                     blocks of 32
//   Q4_1, Q5_1          w = d q + m
//   Q4_K, Q5_K          w = d s q - e m             blocks of 256: eight runs of 32 with s and m of six bits each
//   Q6_K                w = d s q                   blocks of 256: sixteen runs of 16 with s of eight bits
//
// Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Every product but the last is exact in single
// precision, so that the numbers are those of the gguf library, bit for bit, however a compiler fuses.
#pragma once
#include "numbers.hpp"

// Where a run of bytes lies in a file, and how.
struct Extent {
    int64_t file, offset, bytes;
    int64_t kind;       // of numbers, as ggml counts them; PLAIN: as they are computed with
    int64_t row, head;  // bytes of a row there; rows of a head in which the two of a pair are neighbours, 0: none
    int64_t turned;     // bytes of a plain number of a matrix whose rows become columns; 0: rows they stay
};
constexpr int64_t PLAIN = -1;

namespace blocks {
inline float half(const uint8_t* at) {
    uint16_t raw;
    std::memcpy(&raw, at, 2);
    const uint32_t magnitude = raw & 0x7fffu, word = magnitude < 0x7c00u ? magnitude << 13 : 0x7f800000u | magnitude << 13;
    float value;
    std::memcpy(&value, &word, 4);
    if (magnitude < 0x7c00u) value *= 0x1p112f;  // the exponent's other bias; right for the smallest numbers, too
    return raw & 0x8000u ? -value : value;
}
struct Single {
    static constexpr int64_t NUMBERS = 1, BYTES = 4;
    static void values(const uint8_t* block, float* out) { std::memcpy(out, block, 4); }
};
struct Half {
    static constexpr int64_t NUMBERS = 1, BYTES = 2;
    static void values(const uint8_t* block, float* out) { *out = half(block); }
};
struct Eight {
    static constexpr int64_t NUMBERS = 32, BYTES = 34;
    static void values(const uint8_t* block, float* out) {
        const float d = half(block);
        for (int i = 0; i < 32; ++i) out[i] = d * float(int8_t(block[2 + i]));
    }
};
// Four or five bits; with a minimum, or about the middle.
template <bool fifth, bool minimum> struct Few {
    static constexpr int64_t HIGH = minimum ? 4 : 2, LOW = HIGH + (fifth ? 4 : 0), NUMBERS = 32, BYTES = LOW + 16;
    static void values(const uint8_t* block, float* out) {
        const float d = half(block), m = minimum ? half(block + 2) : 0.f;
        uint32_t high = 0;
        if (fifth) std::memcpy(&high, block + HIGH, 4);
        for (int i = 0; i < 32; ++i) {
            const int q = (block[LOW + i % 16] >> (i < 16 ? 0 : 4) & 15) | int(high >> i & 1) << 4;
            out[i] = minimum ? d * float(q) + m : d * float(q - (fifth ? 16 : 8));
        }
    }
};
template <bool fifth> struct Scaled {
    static constexpr int64_t LOW = fifth ? 48 : 16, NUMBERS = 256, BYTES = LOW + 128;
    static void values(const uint8_t* block, float* out) {
        const float d = half(block), e = half(block + 2);
        const uint8_t* packed = block + 4;  // of the last four runs, the two upper bits lie above the first four's six
        for (int run = 0; run < 8; ++run) {
            const int at = run % 4, s = run < 4 ? packed[at] & 63 : (packed[8 + at] & 15) | (packed[at] >> 2 & 48);
            const int m = run < 4 ? packed[4 + at] & 63 : packed[8 + at] >> 4 | (packed[4 + at] >> 2 & 48);
            const float scale = d * float(s), least = e * float(m);
            const uint8_t* low = block + LOW + run / 2 * 32;
            for (int i = 0; i < 32; ++i) {
                const int q = (low[i] >> (run % 2 * 4) & 15) | (fifth ? (block[16 + i] >> run & 1) << 4 : 0);
                out[run * 32 + i] = scale * float(q) - least;
            }
        }
    }
};
struct Six {
    static constexpr int64_t NUMBERS = 256, BYTES = 210;
    static void values(const uint8_t* block, float* out) {
        const float d = half(block + 208);
        for (int i = 0; i < 256; ++i) {
            const int side = i / 128, in = i % 128, low = block[side * 64 + in % 64] >> (in / 64 * 4) & 15;
            const int high = block[128 + side * 32 + in % 32] >> (in / 32 * 2) & 3;
            out[i] = d * float(int8_t(block[192 + i / 16])) * float((low | high << 4) - 32);
        }
    }
};

// `work` with the blocks of a kind; false for a kind that is none of these.
template <class Work> bool of(int64_t kind, Work work) {
    switch (kind) {
        case 0: return work(Single()), true;
        case 1: return work(Half()), true;
        case 2: return work(Few<false, false>()), true;
        case 3: return work(Few<false, true>()), true;
        case 6: return work(Few<true, false>()), true;
        case 7: return work(Few<true, true>()), true;
        case 8: return work(Eight()), true;
        case 12: return work(Scaled<false>()), true;
        case 13: return work(Scaled<true>()), true;
        case 14: return work(Six()), true;
    }
    return false;
}
}  // namespace blocks

// Whether an extent's bytes are not simply copied.
inline bool changes(const Extent& extent) { return extent.kind != PLAIN || extent.head || extent.turned; }
// The bytes of it that stay together: a block, a row that only changes its place, or a number.
inline int64_t together(const Extent& extent) {
    int64_t bytes = extent.head ? extent.row : extent.turned ? extent.turned : 1;
    blocks::of(extent.kind, [&](auto block) { bytes = decltype(block)::BYTES; });
    return bytes;
}
// Its bytes once they are here.
inline int64_t arrived(const Extent& extent) {
    int64_t bytes = extent.bytes;
    blocks::of(extent.kind, [&](auto block) { bytes = bytes / decltype(block)::BYTES * decltype(block)::NUMBERS * sizeof(bf16); });
    return bytes;
}
// Some of a matrix's numbers, of which `past` bytes come before, put where they belong once rows are columns.
template <class T> void turn(const Extent& extent, const char* from, int64_t past, int64_t bytes, char* to) {
    constexpr int64_t ROWS = 128 / sizeof(T), COLUMNS = 16;  // two lines of cache are filled at once
    const int64_t depth = extent.row / int64_t(sizeof(T)), outs = extent.bytes / extent.row;
    const int64_t first = past / int64_t(sizeof(T)), last = first + bytes / int64_t(sizeof(T));
    const auto some = [&](int64_t row, int64_t to_row, int64_t column, int64_t to_column) {
        for (int64_t c = column; c < to_column; ++c)
            for (int64_t r = row; r < to_row; ++r) std::memcpy(to + (c * outs + r) * sizeof(T), from + (r * depth + c - first) * sizeof(T), sizeof(T));
    };
    for (int64_t row = first / depth; row * depth < last;) {
        if (row * depth < first || (row + 1) * depth > last) {  // begun in the piece before, or ends in the next one
            some(row, row + 1, std::max<int64_t>(first - row * depth, 0), std::min(depth, last - row * depth));
            ++row;
            continue;
        }
        const int64_t to_row = std::min(last / depth, (row / ROWS + 1) * ROWS);
        for (int64_t c = 0; c < depth; c += COLUMNS) some(row, to_row, c, std::min(depth, c + COLUMNS));
        row = to_row;
    }
}
// Some of its bytes, of which `past` come before, to where they belong from `to` on.
inline void put_changed(const Extent& extent, const char* from, int64_t past, int64_t bytes, char* to) {
    if (extent.turned) return extent.turned == 2 ? turn<uint16_t>(extent, from, past, bytes, to) : turn<uint32_t>(extent, from, past, bytes, to);
    const int64_t step = together(extent), in_row = extent.head ? extent.row / step : 1, half = extent.head / 2;
    const auto place = [&](int64_t number) {
        if (!extent.head) return number;
        const int64_t row = number / in_row, in_head = row % extent.head;
        return (row - in_head + in_head % 2 * half + in_head / 2) * in_row + number % in_row;
    };
    const bool known = blocks::of(extent.kind, [&](auto block) {
        using Block = decltype(block);
        float values[Block::NUMBERS];
        for (int64_t at = 0, number = past / step; at < bytes; at += step, ++number) {
            Block::values(reinterpret_cast<const uint8_t*>(from) + at, values);
            narrow(values, Block::NUMBERS, 1.f, reinterpret_cast<bf16*>(to) + place(number) * Block::NUMBERS);
        }
    });
    for (int64_t at = 0; !known && at < bytes; at += step) std::memcpy(to + place((past + at) / step) * step, from + at, step);
}
