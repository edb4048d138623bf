// One-pass learning: delayed spikes -> coincidence neurons -> decisions, all by the delta rule.
//
// The next token is said by decisions on the way down a binary tree. For each of CONTEXTS views of the past one
// coincidence neuron fires; its synapse onto a decision is a slot, probability and count, that moves by 1 / (count + 1.5)
// of its error. What slots of one kind turned out to be worth is learned too (maps), a few linear neurons chosen by the
// situation mix both in the domain of log odds (mixers, then one that mixes them), and two tables correct what comes out.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "numbers.hpp"

namespace coincidence {

constexpr int CONTEXTS = 24, MATCHES = 2, SETS = 4, SLOTS = 8;  // a bucket: a check and the slots of three levels
constexpr int INPUTS = 64;                                      // 2 of a context, 2 of a match, a bias; the rest is zero
constexpr int COUNTS = 20, LEVELS = 64, STEPS = 33, RECENT = 32, MOST = 64;
constexpr int MATCH_BUCKETS = 6, ORDERS = 6, DEPTHS = 4;
constexpr float HIGHEST = 12.0f;  // log odds
constexpr int32_t MATCH_LEAST[MATCHES] = {9, 5};

// What Python hands over (coincidence.py): everything by address, in this order.
struct Call {
    int64_t num_tokens, num_nodes, bucket_bits, match_bits, history_bits, correction_bits;
    const int32_t *path, *path_start, *node_tree, *kind, *fold;
    uint32_t* slots;
    float *maps, *map_counts, *mixers, *finals, *first_correction, *second_correction, *match_odds, *match_counts;
    int32_t* found;
    int32_t* history;
    int64_t *learned, *state;
    float slowest, fastest, decay, final_rate, correction_rate, map_limit;
    int32_t slot_limit;
};
// A step of a path, four numbers: node, segment of three levels, slot in it (1..7), decision.
struct Step {
    int32_t node, segment, slot, bit;
};
enum Kind { OTHER, LETTER, NEWLINE, SPACE };

// The state, as int64: what the delay lines hold, and what words and lines have come to.
struct Past {
    int64_t read;
    uint64_t word, word1, word2, word3, suffix, shape, line, paragraph, opening, topic;
    int64_t letters, column, blank, mark;
    int64_t pointer[MATCHES], length[MATCHES];
    int64_t spare[13];
    int64_t recent[RECENT];
    int64_t back(int64_t steps) const { return read >= steps ? recent[(read - steps) & (RECENT - 1)] : 0; }
};
static_assert(sizeof(Past) == 64 * 8, "coincidence.py makes a state of 64 words");

inline uint64_t mixed(uint64_t a, uint64_t b) {
    uint64_t x = (a ^ (b * 0x9E3779B97F4A7C15ull) ^ 0x1234567) * 0xD6E8FEB86659FD93ull;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93ull;
    return x ^ (x >> 29);
}

// Functions of one number, by table: log odds of a probability in 4096 steps, and back by interpolation.
struct Curves {
    float odds[4096], sigmoid[2050], pace[1024];
    uint8_t level[4096], count[1024];
    Curves() {
        for (int i = 0; i < 4096; ++i) {
            const double p = (i + 0.5) / 4096;
            odds[i] = float(std::log(p / (1 - p)));
            level[i] = uint8_t(std::fmin(std::fmax(odds[i] * 4 + LEVELS / 2, 0), LEVELS - 1));
        }
        for (int i = 0; i < 2050; ++i) sigmoid[i] = float(1 / (1 + std::exp(-(i / 2048.0 - 0.5) * 2 * HIGHEST)));
        for (int n = 0; n < 1024; ++n) {
            pace[n] = float(1 / (n + 1.5));
            count[n] = n < 12 ? n : n < 16 ? 12 : n < 24 ? 13 : n < 32 ? 14 : n < 64 ? 15 : n < 128 ? 16 : n < 250 ? 17 : 18;
        }
    }
};
inline const Curves& curves() {
    static const Curves made;
    return made;
}
// also of what is no number
inline float bounded(float x) { return std::fmin(std::fmax(x, -HIGHEST), HIGHEST); }
inline float probability(const Curves& c, float odds) {
    const float at = (bounded(odds) + HIGHEST) * (2048 / (2 * HIGHEST));
    const int low = int(at);
    return c.sigmoid[low] + (c.sigmoid[low + 1] - c.sigmoid[low]) * (at - low);
}
inline float odds_of(const Curves& c, float p) {
    const int i = int(p * 4096);
    return c.odds[i < 0 ? 0 : i > 4095 ? 4095 : i];
}

// A decision: what came in, what was said, and where what is to be learned lies.
struct Decision {
    float inputs[INPUTS] __attribute__((aligned(64)));
    float votes[8], said[SETS], mixed_odds, mixed_p, p, share;
    float *weights[SETS], *final_weights, *first, *second, *map[CONTEXTS], *map_count[CONTEXTS];
    uint32_t* slot[CONTEXTS];
    int match_row[MATCHES], match_bit[MATCHES];
};

class Mind {
  public:
    explicit Mind(const Call& call) : call(call), past(*reinterpret_cast<Past*>(call.state)), c(curves()) {
        mask = (uint64_t(1) << call.bucket_bits) - 1;
        view();
    }

    // log p(token); learns it where asked, and moves on.
    float read(int32_t token, bool learn) {
        const Step* steps = reinterpret_cast<const Step*>(call.path) + call.path_start[token];
        const int depth = call.path_start[token + 1] - call.path_start[token];
        double product = 1;
        begin();
        int segment = -1;
        Decision d;
        for (int level = 0; level < depth; ++level) {
            const Step& step = steps[level];
            if (step.segment != segment) open(segment = step.segment, learn);
            decide(d, step.node, step.slot, level);
            product *= step.bit ? d.p : 1 - d.p;
            if (level + 1 < depth && steps[level + 1].segment != segment) fetch(steps[level + 1].segment);
            if (learn) learn_decision(d, step.bit);
            for (int m = 0; m < MATCHES; ++m)
                if (d.match_bit[m] >= 0 && d.match_bit[m] != step.bit) guessed[m] = -1;
        }
        if (learn) call.learned[1] += depth;
        move_on(token, learn);
        return float(std::log(product));
    }

    // log p of every token; nothing moves.
    void all(float* out) {
        begin();
        for (int64_t n = 0; n < call.num_tokens; ++n) out[n] = 0;
        opened = -1;
        descend(0, 0, -1, 1, 0.0f, out);
    }

  private:
    const Call& call;
    Past& past;
    const Curves& c;
    uint64_t mask;
    uint64_t neuron[CONTEXTS];
    uint32_t* bucket[CONTEXTS];
    uint32_t unknown[SLOTS] = {0, 1u << 31, 1u << 31, 1u << 31, 1u << 31, 1u << 31, 1u << 31, 1u << 31};
    int32_t guess[MATCHES], guessed[MATCHES], opened = -1;

    // Which coincidence neuron fires in each view: the hash of the delayed spikes, words and lines it listens to.
    void view() {
        uint64_t b[9];
        for (int n = 1; n < 9; ++n) b[n] = uint64_t(past.back(n));
        const uint64_t o2 = b[1] | b[2] << 16, o3 = o2 | b[3] << 32, o4 = o3 | b[4] << 48;
        const uint64_t o5 = mixed(o4, b[5]), o6 = mixed(o5, b[6]), o7 = mixed(o6, b[7]);
        const bool inside = past.letters > 0;
        const uint64_t word = past.word + (inside ? 0 : b[1] + 1);
        const uint64_t views[CONTEXTS] = {
            0, b[1], o2, o3, o4, o5, o6, o7,
            word, mixed(word, past.word1), mixed(mixed(word, past.word1), past.word2), mixed(word, past.word2 + 77),
            b[2] | b[3] << 16, b[2] | b[3] << 16 | b[4] << 32, b[1] | b[3] << 16 | b[4] << 32,
            mixed(past.word, past.mark), mixed(word, past.paragraph),
            (past.column < 63 ? past.column : 63) | b[1] << 16,
            mixed(word, past.suffix), mixed(past.shape, b[1]), mixed(past.opening, word),
            mixed(word, past.word3 + 99), mixed(o3, past.word1), mixed(past.topic, word),
        };
        for (int n = 0; n < CONTEXTS; ++n) neuron[n] = mixed(views[n], n + 1);
        fetch(0);
    }

    uint32_t* place(int n, int segment, uint32_t& check) const {
        const uint64_t h = (neuron[n] + segment) * 0x9E3779B97F4A7C15ull;
        check = uint32_t(h) | 1;
        return call.slots + ((h >> 34) & mask) * SLOTS;
    }
    void fetch(int segment) const {
        uint32_t check;
        for (int n = 0; n < CONTEXTS; ++n) __builtin_prefetch(place(n, segment, check));
    }
    // The bucket of each neuron: its own, or, to learn, the place of whoever of two was used less.
    void open(int segment, bool learn) {
        for (int n = 0; n < CONTEXTS; ++n) {
            uint32_t check;
            uint32_t* one = place(n, segment, check);
            uint32_t* other = call.slots + ((one - call.slots) ^ SLOTS);
            if (one[0] == check) bucket[n] = one;
            else if (other[0] == check) bucket[n] = other;
            else if (!learn) bucket[n] = unknown;
            else {
                uint32_t* taken = (one[1] & 1023) <= (other[1] & 1023) ? one : other;
                taken[0] = check;
                for (int s = 1; s < SLOTS; ++s) taken[s] = 1u << 31;
                bucket[n] = taken;
            }
        }
    }

    void begin() {
        for (int m = 0; m < MATCHES; ++m) {
            guess[m] = past.length[m] > 0 ? call.history[past.pointer[m] & ((int64_t(1) << call.history_bits) - 1)] : -1;
            guessed[m] = guess[m];
        }
    }

    void decide(Decision& d, int node, int slot, int level) {
        std::memset(d.inputs, 0, sizeof d.inputs);
        int known = 0;
        for (int n = 0; n < CONTEXTS; ++n) {
            uint32_t* at = bucket[n] + slot;
            d.slot[n] = at;
            const int count = *at & 1023;
            if (count == 0) {
                d.map[n] = nullptr;
                continue;
            }
            const int row = (n * COUNTS + c.count[count]) * LEVELS + c.level[*at >> 20];
            d.map[n] = call.maps + row;
            d.map_count[n] = call.map_counts + row;
            d.inputs[n] = odds_of(c, call.maps[row]);
            d.inputs[CONTEXTS + n] = ((*at >> 10) * (1.0f / (1 << 22)) - 0.5f) * 2;
            known += n >= 2 && n <= 6;
        }
        int bucket_of_match = 0, expected = 0;
        for (int m = 0; m < MATCHES; ++m) {
            d.match_bit[m] = -1;
            if (guessed[m] < 0) continue;
            const Step* steps = reinterpret_cast<const Step*>(call.path) + call.path_start[guessed[m]];
            if (level >= call.path_start[guessed[m] + 1] - call.path_start[guessed[m]] || steps[level].node != node) continue;
            const int length = int(past.length[m] < MOST ? past.length[m] : MOST - 1);
            d.match_row[m] = m * MOST + length;
            d.match_bit[m] = steps[level].bit;
            const float p = call.match_odds[d.match_row[m]], sign = steps[level].bit ? 1.0f : -1.0f;
            d.inputs[2 * CONTEXTS + m] = sign * odds_of(c, p);
            d.inputs[2 * CONTEXTS + MATCHES + m] = sign * (p - 0.5f) * 2;
            if (bucket_of_match == 0) bucket_of_match = m == 1 ? 1 : length < 12 ? 2 : length < 20 ? 3 : length < 28 ? 4 : 5;
        }
        d.inputs[2 * CONTEXTS + 2 * MATCHES] = 0.3f;
        const int64_t last = past.back(1), nodes = call.num_nodes;
        const int64_t row[SETS] = {
            node,
            nodes + bucket_of_match * nodes + node,
            nodes * (1 + MATCH_BUCKETS) + known * nodes + node,
            nodes * (1 + MATCH_BUCKETS + ORDERS) + last * DEPTHS + (level < DEPTHS ? level : DEPTHS - 1),
        };
        d.final_weights = call.finals + (last * nodes + node) * SETS;
        float odds = 0;
        for (int s = 0; s < SETS; ++s) {
            d.weights[s] = call.mixers + row[s] * INPUTS;
            vec sum = {0};
            for (int n = 0; n < INPUTS; n += LANES)
                sum += *reinterpret_cast<const vec*>(d.weights[s] + n) * *reinterpret_cast<const vec*>(d.inputs + n);
            float vote = 0;
            for (int lane = 0; lane < LANES; ++lane) vote += sum[lane];
            d.votes[s] = bounded(vote);
            d.said[s] = probability(c, d.votes[s]);
            odds += d.final_weights[s] * d.votes[s];
        }
        d.mixed_odds = bounded(odds);
        d.mixed_p = probability(c, d.mixed_odds);
        const float at = (std::fmin(std::fmax(d.mixed_odds, -7.99f), 7.99f) + 8) * 2;
        const int low = int(at);
        d.share = at - low;
        const uint64_t rows = (uint64_t(1) << call.correction_bits) - 1;
        d.first = call.first_correction + (mixed(last, node) & rows) * STEPS + low;
        d.second = call.second_correction + (mixed(last | past.back(2) << 16, node) & rows) * STEPS + low;
        const float corrected = (d.first[0] + d.second[0]) * (1 - d.share) + (d.first[1] + d.second[1]) * d.share;
        d.p = std::fmin(std::fmax(0.5f * d.mixed_p + 0.25f * corrected, 1e-5f), 1 - 1e-5f);
    }

    // The delta rule, stage by stage: each moves by its own error and nobody else's.
    void learn_decision(Decision& d, int bit) {
        const float y = float(bit);
        const float rate = std::fmax(call.slowest, call.fastest / (1 + call.decay * float(call.learned[1])));
        for (int s = 0; s < SETS; ++s) {
            vec step = {0};
            step += (y - d.said[s]) * rate;
            for (int n = 0; n < INPUTS; n += LANES)
                *reinterpret_cast<vec*>(d.weights[s] + n) += step * *reinterpret_cast<const vec*>(d.inputs + n);
        }
        for (int s = 0; s < SETS; ++s) d.final_weights[s] += (y - d.mixed_p) * call.final_rate * d.votes[s];
        for (float* table : {d.first, d.second}) {
            table[0] += (y - table[0]) * call.correction_rate * (1 - d.share);
            table[1] += (y - table[1]) * call.correction_rate * d.share;
        }
        for (int n = 0; n < CONTEXTS; ++n) {
            if (d.map[n] != nullptr) {
                *d.map[n] += (y - *d.map[n]) / (*d.map_count[n] + 1.5f);
                if (*d.map_count[n] < call.map_limit) *d.map_count[n] += 1;
            }
            const uint32_t count = *d.slot[n] & 1023;
            const float p = float(*d.slot[n] >> 10), target = bit ? float((1 << 22) - 1) : 0.0f;
            *d.slot[n] = uint32_t(p + (target - p) * c.pace[count]) << 10 | (count < uint32_t(call.slot_limit) ? count + 1 : count);
        }
        for (int m = 0; m < MATCHES; ++m) {
            if (d.match_bit[m] < 0) continue;
            float &p = call.match_odds[d.match_row[m]], &count = call.match_counts[d.match_row[m]];
            p += (float(d.match_bit[m] == bit) - p) / (count + 1.5f);
            if (count < 1000) count += 1;
        }
    }

    void move_on(int32_t token, bool learn) {
        const int64_t wrap = (int64_t(1) << call.history_bits) - 1;
        if (learn) call.history[call.learned[0] & wrap] = token;
        past.recent[past.read & (RECENT - 1)] = token;
        ++past.read;
        if (learn) ++call.learned[0];
        for (int m = 0; m < MATCHES; ++m) {
            if (guess[m] == token) ++past.length[m], ++past.pointer[m];
            else past.length[m] = 0;
            if (past.read < MATCH_LEAST[m]) continue;
            uint64_t h = m;
            for (int n = 1; n <= MATCH_LEAST[m]; ++n) h = mixed(h, past.back(n));
            int32_t& entry = call.found[(int64_t(m) << call.match_bits) + int64_t(h >> (64 - call.match_bits))];
            if (past.length[m] == 0 && entry > 0) look_up(m, entry);
            // the text learned so far ends with this token: what comes next is found here
            if (learn) entry = int32_t(call.learned[0] & 0x3fffffff);
            if (past.length[m] > 0 && (past.pointer[m] & 0x3fffffff) == (call.learned[0] & 0x3fffffff)) past.length[m] = 0;
        }
        const int kind = call.kind[token];
        if (kind == LETTER) {
            past.word = mixed(past.word, call.fold[token]);
            ++past.letters;
        } else {
            if (past.letters > 0) {
                past.word3 = past.word2, past.word2 = past.word1, past.word1 = past.word;
                past.shape = (past.shape * 16 + (past.letters < 15 ? past.letters : 15)) & 0xfff;
                past.suffix = uint64_t(call.fold[past.back(3)]) << 16 | uint64_t(call.fold[past.back(2)]);
                if (past.letters > 4) past.topic = past.word;
                past.word = 0, past.letters = 0;
            }
            if (kind != SPACE) past.mark = token;
        }
        if (kind == NEWLINE) {
            if (past.column > 0 && past.blank) past.paragraph = past.line;
            past.blank = past.column == 0;
            past.column = 0, past.line = 0, past.opening = 0;
        } else {
            ++past.column;
            past.line = mixed(past.line, token);
            if (past.opening == 0 && kind != LETTER && past.column > 1) past.opening = past.word1;
        }
        view();
    }

    void look_up(int m, int64_t candidate) {
        const int64_t wrap = (int64_t(1) << call.history_bits) - 1;
        int64_t length = 0;
        while (length < RECENT && length < candidate && length < past.read && call.history[(candidate - 1 - length) & wrap] == past.back(length + 1))
            ++length;
        if (length >= MATCH_LEAST[m]) past.length[m] = length, past.pointer[m] = candidate;
    }

    // The tree below a node, depth first; `tree` holds two children of each node, a leaf as -1 - token.
    void descend(int node, int level, int segment, int slot, float log_p, float* out) {
        const int32_t* entry = call.node_tree + node * 3;  // segment, child of 0, child of 1
        if (entry[0] != segment) slot = 1;
        if (entry[0] != opened) open(opened = entry[0], false);
        Decision d;
        decide(d, node, slot, level);
        int32_t kept[MATCHES];
        std::memcpy(kept, guessed, sizeof kept);
        for (int bit = 0; bit < 2; ++bit) {
            for (int m = 0; m < MATCHES; ++m) guessed[m] = d.match_bit[m] >= 0 && d.match_bit[m] != bit ? -1 : kept[m];
            const float below = log_p + std::log(bit ? d.p : 1 - d.p);
            const int32_t child = entry[1 + bit];
            if (child < 0) out[-1 - child] = below;
            else descend(child, level + 1, entry[0], slot * 2 + bit, below, out);
        }
        std::memcpy(guessed, kept, sizeof kept);
    }
};

// Tokens one after another: log p of each before it is read, and, where wanted, log p of all behind the last `rows`.
inline void read_tokens(const Call& call, const int64_t* tokens, int64_t count, bool learn, float* said, float* all, int64_t rows) {
    Mind mind(call);
    for (int64_t n = 0; n < count; ++n) {
        said[n] = mind.read(int32_t(tokens[n]), learn);
        if (n >= count - rows) mind.all(all + (n - (count - rows)) * call.num_tokens);
    }
}

}  // namespace coincidence
