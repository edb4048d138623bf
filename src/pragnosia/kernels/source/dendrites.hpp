// Values and outputs that pass through the most driven dendrites of each head; the others' weights are not read.
//
//   v[h] = sum over the A most driven j of  2 sigmoid(d[h, j]) V[h, j] x           d = G x      hearing
//   y   += sum over h, the A most driven j  2 sigmoid(e[h, j]) O[h, j] m[h]        e = E m      speaking
//
// model/dendrites.py says the same. A part of step.hpp, whose products compute d and e; what is here is bit for bit the
// same for a token alone and for one among others.
#pragma once

struct StepDendrites {
    StepLinear gate;  // (H J, I): how much each is driven
    Stored weight;    // (H J, rows, depth), plain numbers
    int64_t heads, each, awake, rows, depth;  // H, J, A; no heads where there are no dendrites

    explicit operator bool() const { return heads; }
    int64_t speaking() const { return heads * awake; }
    // A dendrite's rows from `row` on.
    template <class W> const W* at(int64_t unit, int64_t row) const {
        return static_cast<const W*>(weight.base) + (unit * rows + row) * depth;
    }
};

// Who is awake, head by head, the most driven first, and how loudly.
struct Driven {
    int64_t* units;
    float* loudness;
};

// Of equals the first; what is no number is driven more than anything.
ONE_CODE inline void most_driven(const StepDendrites& d, const float* drive, const Driven& out) {
    for (int64_t h = 0; h < d.heads; ++h) {
        int64_t* mine = out.units + h * d.awake;
        for (int64_t a = 0; a < d.awake; ++a) {
            int64_t most = -1;
            for (int64_t u = h * d.each; u < (h + 1) * d.each; ++u)
                if (std::find(mine, mine + a, u) == mine + a && (most < 0 || !(drive[u] <= drive[most]))) most = u;
            mine[a] = most, out.loudness[h * d.awake + a] = 2.f * sigmoid(drive[most]);
        }
    }
}

// This thread's rows of all heads' values; `x` is laid out for W.
template <class W> ONE_CODE void hear(const StepDendrites& d, const Driven& driven, const float* x, Member me, float* values) {
    const int64_t blocks = (d.rows + LINES - 1) / LINES;
    for (int64_t i = me.from(d.heads * blocks, 1), to = me.to(d.heads * blocks, 1); i < to; ++i) {
        const int64_t head = i / blocks, row = i % blocks * LINES, lines = std::min<int64_t>(LINES, d.rows - row);
        float total[LINES] = {};
        for (int64_t a = head * d.awake; a < (head + 1) * d.awake; ++a) {
            float part[1][LINES];
            dots<W, 1>(d.at<W>(driven.units[a], row), d.depth, lines, x, 0, 1, d.depth, part, 2 * LINES * d.depth);
            for (int r = 0; r < LINES; ++r) total[r] += driven.loudness[a] * part[0][r];
        }
        std::copy_n(total, lines, values + head * d.rows + row);
    }
}

// What the heads gathered, as loud as each of their dendrites speaks and laid out for W, one after the other.
template <class W> ONE_CODE void raise_voices(const StepDendrites& d, const Driven& driven, const float* gathered, float* scratch, float* out) {
    for (int64_t a = 0; a < d.speaking(); ++a) {
        for (int64_t k = 0; k < d.depth; ++k) scratch[k] = driven.loudness[a] * gathered[a / d.awake * d.depth + k];
        lay_out<W>(scratch, d.depth, out + a * round_up(d.depth, 16));
    }
}
// This thread's share of what they say, added to y; sums stay unfinished until the last dendrite.
template <class W> ONE_CODE void speak_to(const StepDendrites& d, const Driven& driven, const float* voices, Member me, float* y) {
    const int64_t all = d.speaking();
    for (int64_t o = me.from(d.rows, LINES), to = me.to(d.rows, LINES); o < to; o += LINES) {
        const int64_t lines = std::min<int64_t>(LINES, d.rows - o);
        Dots<W, 1> sum;
        for (int64_t a = 0; a < all; ++a) {
            const W* w = d.at<W>(driven.units[a], o);
            const W* later = d.at<W>(driven.units[(a + 2) % all], o + (a + 2) / all * LINES);
            sum.add(w, d.depth, lines, voices + a * round_up(d.depth, 16), 0, d.depth, later - w);
        }
        float part[1][LINES];
        sum.finish(part);
        for (int64_t r = 0; r < lines; ++r) y[o + r] += part[0][r];
    }
}
