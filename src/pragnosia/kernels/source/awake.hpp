// A product that reads only the weights of inputs that are awake. The matrix lies input by input, (depth, outs), so that
// all weights of one input are a single run, and a sleeping input's run is stepped over.
//
//   y[o] = sum over awake i of x[i] w[i, o]
#pragma once
#include "few.hpp"

constexpr int64_t SLICE = 1024;  // outputs summed at once: they stay in the first-level cache
constexpr int64_t RUNS = 4;      // inputs that share one pass over the sums

// The inputs of a vector that are awake: which, and how much.
struct Awake {
    int32_t* index;
    float* value;
    int64_t count;
    static constexpr int64_t SPARE = 16;  // a register may overhang
    static size_t bytes(int64_t depth) { return Scratch::size<int32_t>(depth + SPARE) + Scratch::size<float>(depth + SPARE); }
    Awake() = default;
    Awake(char* memory, int64_t depth)
        : index(reinterpret_cast<int32_t*>(memory)), value(reinterpret_cast<float*>(memory + Scratch::size<int32_t>(depth + SPARE))), count(0) {}

    // Those of x beyond the threshold; what is no number is awake.
    void find(const float* x, int64_t depth, float threshold) {
        int64_t found = 0, i = 0;
#if defined(__AVX512F__)
        const __m512 limit = _mm512_set1_ps(threshold);
        __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; i + 16 <= depth; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
            const __m512 some = _mm512_loadu_ps(x + i);
            const __mmask16 up = _mm512_cmp_ps_mask(_mm512_abs_ps(some), limit, _CMP_NLE_UQ);
            _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(up, at));
            _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(up, some));
            found += __builtin_popcount(up);
        }
#endif
        for (; i < depth; ++i) {
            index[found] = int32_t(i), value[found] = x[i];
            found += !(std::fabs(x[i]) <= threshold);
        }
        count = found;
    }
};

// Adds `some` <= RUNS inputs' runs to sums; bfloat16 weights leave each 2 LANES sums as the even ones, then the odd.
template <class W, int some>
inline void add_runs(const W* const* run, const float* value, const W* const* next, int64_t outs, float* sums) {
    constexpr int64_t step = STEP<W>;
    const int64_t whole = outs / step * step;
    for (int64_t o = 0; o < whole; o += step) {
        vec *first = reinterpret_cast<vec*>(sums + o), *second = reinterpret_cast<vec*>(sums + o + LANES);
        vec a = *first, b{};
        if constexpr (sizeof(W) == 2) b = *second;
#pragma GCC unroll 4
        for (int r = 0; r < some; ++r) {
            __builtin_prefetch(next[r] + o);
            const bits words = *reinterpret_cast<const bits*>(run[r] + o);
            if constexpr (sizeof(W) == 2) {
                a += (vec)(words << 16) * value[r];
                b += (vec)(words & 0xffff0000u) * value[r];
            } else {
                a += (vec)words * value[r];
            }
        }
        *first = a;
        if constexpr (sizeof(W) == 2) *second = b;
    }
    for (int64_t o = whole; o < outs; ++o)
        for (int r = 0; r < some; ++r) sums[o] += value[r] * widen(run[r][o]);
}

// sums[o] = what the awake inputs give output o, o < outs <= SLICE; `w` is the first input's weight for output 0, and
// `pitch` weights lie from one input to the next.
template <class W> void awake_sums(const W* w, int64_t pitch, const Awake& in, int64_t outs, float* sums) {
    constexpr int64_t step = STEP<W>;
    std::fill_n(sums, outs, 0.f);
    const auto at = [&](int64_t k) { return w + in.index[k] * pitch; };
    for (int64_t k = 0; k < in.count; k += RUNS) {
        const int64_t some = std::min(RUNS, in.count - k);
        const W *run[RUNS], *next[RUNS];
        for (int64_t r = 0; r < RUNS; ++r) {
            run[r] = at(k + std::min(r, some - 1));
            next[r] = k + RUNS + r < in.count ? at(k + RUNS + r) : run[r];
        }
        switch (some) {
            case 4: add_runs<W, 4>(run, in.value + k, next, outs, sums); break;
            case 3: add_runs<W, 3>(run, in.value + k, next, outs, sums); break;
            case 2: add_runs<W, 2>(run, in.value + k, next, outs, sums); break;
            default: add_runs<W, 1>(run, in.value + k, next, outs, sums);
        }
    }
    if constexpr (sizeof(W) == 2)
        for (int64_t o = 0; o + step <= outs; o += step) {
            float even[LANES], odd[LANES];
            std::copy_n(sums + o, LANES, even), std::copy_n(sums + o + LANES, LANES, odd);
            for (int64_t lane = 0; lane < LANES; ++lane) sums[o + 2 * lane] = even[lane], sums[o + 2 * lane + 1] = odd[lane];
        }
}

// y (outs,) = x (depth,) weight + bias, zeros of x asleep; y has x's type.
template <class W>
void awake_linear(const void* x, bool x_is_bf16, const void* weight, const void* bias, int64_t outs, int64_t depth, int64_t threads, void* y) {
    Scratch& scratch = few_scratch();
    scratch.reset(Scratch::size<float>(depth) + Awake::bytes(depth));
    float* input = scratch.take<float>(depth);
    Awake awake(scratch.take<char>(Awake::bytes(depth)), depth);
    read(x, x_is_bf16, 0, depth, input);
    awake.find(input, depth, 0.f);
    const W *w = static_cast<const W*>(weight), *b = static_cast<const W*>(bias);
    const int64_t wanted = team(awake.count * outs * int64_t(sizeof(W)), threads), share = std::min(SLICE, round_up((outs + wanted - 1) / wanted, 64));
#pragma omp parallel for schedule(static) num_threads(int(wanted))
    for (int64_t o = 0; o < outs; o += share) {
        float sums[SLICE];
        const int64_t some = std::min(share, outs - o);
        awake_sums(w + o, outs, awake, some, sums);
        for (int64_t j = 0; b && j < some; ++j) sums[j] += widen(b[o + j]);
        write(sums, some, y, x_is_bf16, o);
    }
}
