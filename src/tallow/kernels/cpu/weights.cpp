#include "weights.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "compress.h"

namespace tallow {
namespace {
#include "numbers.h"

struct Row {
    const Source *source;  // null: zeros
    int64_t index;
};

Row find(const std::vector<Source> &sources, int32_t row) {
    int64_t index = row;
    for (const Source &source : sources) {
        if (row < 0) break;
        if (index < source.rows) return {&source, index};
        index -= source.rows;
    }
    if (row >= 0) throw std::out_of_range("a packed weight names a row that its sources do not have");
    return {nullptr, 0};
}

void read_floats(const Row &row, int64_t inputs, float *out) {
    if (!row.source) return std::fill(out, out + inputs, 0.0f), void();
    const int64_t from = row.index * inputs;
    const uint16_t *halves = reinterpret_cast<const uint16_t *>(row.source->values) + from;
    switch (row.source->kind) {
        case Source::float32:
            std::memcpy(out, reinterpret_cast<const float *>(row.source->values) + from, inputs * sizeof(float));
            return;
        case Source::bfloat16:
            for (int64_t i = 0; i < inputs; ++i) out[i] = from_bfloat16(halves[i]);
            return;
        case Source::float16:
            for (int64_t i = 0; i < inputs; ++i) out[i] = from_half(halves[i]);
            return;
        case Source::blocks: {
            const BlockFormat &format = *row.source->format;
            const int64_t count = inputs / format.elements;
            return unpack_blocks(format, row.source->values + row.index * count * format.bytes, count, out);
        }
        default: throw std::invalid_argument("codes cannot be packed as floats");
    }
}

// Whether a weight is packed with the codes that it is stored in. (Those of other blocks come back from their values.)
bool keeps_codes(const Source &source, Number number) {
    return source.codes() || (is_integer(number) && weight_bits(number) == 4 && source.format == block_format(kQ4_0));
}

// The codes of a row as unsigned bytes, one each (8 bit: + 128), and its scales.
void read_codes(const Row &row, Number number, int64_t inputs, int64_t group, uint8_t *codes, uint16_t *scales) {
    const int64_t groups = inputs / group;
    if (row.source->kind == Source::blocks) {
        const BlockFormat &format = *row.source->format;
        const uint8_t *block = row.source->values + row.index * groups * format.bytes;
        for (int64_t g = 0; g < groups; ++g, block += format.bytes, codes += group) {
            std::memcpy(scales + g, block, sizeof(uint16_t));
            for (int64_t i = 0; i < group / 2; ++i) {
                codes[i] = block[2 + i] & 15;
                codes[group / 2 + i] = block[2 + i] >> 4;
            }
        }
        return;
    }
    std::memcpy(scales, row.source->scales + row.index * groups, groups * sizeof(uint16_t));
    if (number == Number::int8) {
        const uint8_t *stored = row.source->values + row.index * inputs;
        for (int64_t i = 0; i < inputs; ++i) codes[i] = uint8_t(stored[i] + 128);
        return;
    }
    const int64_t group_bytes = group * weight_bits(number) / 8;
    const uint8_t *stored = row.source->values + row.index * groups * group_bytes;
    for (int64_t g = 0; g < groups; ++g, stored += group_bytes, codes += group) {
        for (int64_t i = 0; i < group / 2; ++i) {
            codes[i] = stored[i] & 15;
            codes[group / 2 + i] = stored[i] >> 4;
        }
        if (number != Number::int6) continue;
        for (int64_t i = 0; i < group; ++i)
            codes[i] |= (stored[group / 2 + i % (group / 4)] >> i / (group / 4) * 2 & 3) << 4;
    }
}

// The value of greatest magnitude, the first of several.
inline float largest_of(const float *values, int64_t count) {
    constexpr uint32_t kMagnitude = 0x7fffffff;
    int32_t positive = INT32_MIN;  // as signed integers, bits of positive values are greater than others,
    uint32_t negative = 0;         // as unsigned ones those of negative values: both maxima vectorize
    for (int64_t i = 0; i < count; ++i) {
        positive = std::max(positive, std::bit_cast<int32_t>(values[i]));
        negative = std::max(negative, std::bit_cast<uint32_t>(values[i]));
    }
    const uint32_t bits = (negative & kMagnitude) > (positive & kMagnitude) ? negative : uint32_t(positive);
    if ((positive ^ negative) != ~kMagnitude) return std::bit_cast<float>(bits);
    while ((std::bit_cast<uint32_t>(*values) & kMagnitude) != (bits & kMagnitude)) ++values;
    return *values;
}

// As quantize_groups does it in 8 and 6 bits, to the bit.
TALLOW_CLONES void quantize(const float *__restrict values, Number number, int64_t inputs, int64_t group,
                            uint8_t *__restrict codes, uint16_t *__restrict scales) {
    const float zero = float(zero_of(number));
    for (int64_t g = 0; g < inputs / group; ++g, values += group, codes += group) {
        const float largest = largest_of(values, group);
        const float scale = number == Number::int8 ? std::fabs(largest) / 127 : largest / -zero;
        const float inverse = scale == 0 ? 0 : 1 / scale;
        scales[g] = to_half(scale);
        if (number != Number::int8) {
            const int32_t most = std::bit_cast<int32_t>(2 * zero - 1);
            for (int64_t i = 0; i < group; ++i) {  // limited as bits, which order as the floats do: that vectorizes
                const int32_t code = std::bit_cast<int32_t>(values[i] * inverse + (zero + 0.5f));
                codes[i] = uint8_t(int(std::bit_cast<float>(std::clamp(code, 0, most))));
            }
            continue;
        }
        for (int64_t i = 0; i < group; ++i) {  // halves away from zero
            const float scaled = values[i] * inverse;
            const int whole = int(scaled);
            codes[i] = uint8_t(whole + int(2 * (scaled - float(whole))) + 128);
        }
    }
}

constexpr int kMostMultiple = 15;

// The 4-bit code next to value · inverse; limited as bits, which order as the floats do: that vectorizes.
inline int nearest_code(float value, float inverse) {
    constexpr float zero = zero_of(Number::nested_int4);
    const int32_t code = std::bit_cast<int32_t>(value * inverse + (zero + 0.5f));
    return int(std::bit_cast<float>(std::clamp(code, 0, std::bit_cast<int32_t>(2 * zero - 1))));
}

// Of a group rounded with this scale; summed in this order, so that the reference can do the same.
TALLOW_INLINE float squared_error(const float *__restrict values, int64_t group, float scale) {
    const float inverse = scale == 0 ? 0 : 1 / scale;
    float sums[8] = {};
    for (int64_t begin = 0; begin < group; begin += 8)
        for (int i = 0; i < 8; ++i) {
            const float code = float(nearest_code(values[begin + i], inverse) - zero_of(Number::nested_int4));
            const float error = values[begin + i] - scale * code;
            sums[i] += error * error;
        }
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// As quantize_groups does it in 4 bits, to the bit. Returns the row's scale; multiples are of groups of 32.
TALLOW_CLONES float quantize_nested(const float *__restrict values, int64_t inputs, int64_t group,
                                    uint8_t *__restrict codes, int8_t *__restrict multiples) {
    const float greatest = std::fabs(largest_of(values, inputs)), exact = greatest / 8 / kMostMultiple;
    float unit = std::bit_cast<float>((std::bit_cast<uint32_t>(exact) + 0x10000) & ~0x1ffffu);
    unit = std::nearbyint(unit * 0x1p24f) * 0x1p-24f;
    if (greatest > 0) unit = std::max(unit, 0x1p-24f);
    for (int64_t g = 0; g < inputs / group; ++g, values += group, codes += group) {
        const float largest = largest_of(values, group), signed_unit = largest > 0 ? -unit : unit;
        const int nearest = unit > 0 ? int(std::fabs(largest) / 8 / unit + 0.5f) : 1;
        float scale = 0, least_error = INFINITY;
        int8_t chosen = 1;
        for (int candidate : {nearest, nearest - 1, nearest + 1}) {
            candidate = std::clamp(candidate, 1, kMostMultiple);
            const float tried = float(candidate) * signed_unit, error = squared_error(values, group, tried);
            if (error < least_error) least_error = error, scale = tried, chosen = int8_t(candidate);
        }
        const float inverse = scale == 0 ? 0 : 1 / scale;
        for (int64_t i = 0; i < group; ++i) codes[i] = uint8_t(nearest_code(values[i], inverse));
        for (int64_t i = 0; i < group / kActivationGroup; ++i) *multiples++ = largest > 0 ? -chosen : chosen;
    }
    return unit;
}

// Finds a row's scale of which those of all groups are multiples; false if there is none.
bool nest(const uint16_t *scales, int64_t groups, int64_t group, float &unit, int8_t *multiples) {
    float greatest = 0;
    for (int64_t g = 0; g < groups; ++g) greatest = std::max(greatest, std::fabs(from_half(scales[g])));
    for (int most = kMostMultiple; most > 0; --most) {
        unit = greatest / float(most);
        const float inverse = unit == 0 ? 0 : 1 / unit;
        bool fits = (std::bit_cast<uint32_t>(unit) & 0x1fff) == 0;  // else its products would not be exact
        for (int64_t g = 0; g < groups && fits; ++g) {
            const float scale = from_half(scales[g]), multiple = std::nearbyint(scale * inverse);
            fits = multiple * unit == scale;
            std::fill_n(multiples + g * (group / kActivationGroup), group / kActivationGroup, int8_t(multiple));
        }
        if (fits) return true;
    }
    return false;
}

// Where the rows of one panel are gathered before they are laid beside each other.
struct Panel {
    std::vector<float> floats;
    std::vector<uint8_t> codes;
    std::vector<uint16_t> scales;
    std::vector<float> units;  // scales of whole rows, and what groups multiply them by
    std::vector<int8_t> multiples;

    Panel(int64_t inputs, int64_t groups)
        : floats(kPanel * inputs),
          codes(kPanel * inputs),
          scales(kPanel * groups),
          units(kPanel),
          multiples(kPanel * inputs / kActivationGroup) {}
};

// Four inputs and the four that lie 16 behind them, of all rows: four bytes at once, as no code reaches beyond its byte.
void pack_step(Number number, const uint8_t *codes, int64_t stride, uint8_t *packed) {
    uint32_t upper[kLanes] = {};
    for (int row = 0; row < kPanel; ++row) {
        uint32_t low, high;
        std::memcpy(&low, codes + row * stride, sizeof low);
        std::memcpy(&high, codes + row * stride + 16, sizeof high);
        const uint32_t nibbles = (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4;
        std::memcpy(packed + 4 * row, &nibbles, sizeof nibbles);
        const uint32_t both = (low & 0x30303030) >> 4 | (high & 0x30303030);
        upper[row % kLanes] |= both << row / kLanes * 2;
    }
    if (number == Number::int6) std::memcpy(packed + 4 * kPanel, upper, sizeof upper);
}

void pack_panel(const Weight &w, const Panel &from, uint8_t *packed) {
    const int64_t inputs = w.inputs;
    if (w.number == Number::float32) {
        float *out = reinterpret_cast<float *>(packed);
        for (int64_t i = 0; i < inputs; ++i)
            for (int row = 0; row < kPanel; ++row) *out++ = from.floats[row * inputs + i];
        return;
    }
    if (w.number == Number::bfloat16 || w.number == Number::compressed_bfloat16) {
        uint16_t *out = reinterpret_cast<uint16_t *>(packed);
        for (int64_t i = 0; i < inputs; i += 2)
            for (int row = 0; row < kPanel; ++row) {
                const float *pair = &from.floats[row * inputs + i];
                *out++ = to_bfloat16(pair[0]);
                *out++ = i + 1 < inputs ? to_bfloat16(pair[1]) : uint16_t(0);
            }
        return;
    }
    const int64_t groups = inputs / w.group;
    if (w.number == Number::nested_int4) {
        std::memcpy(packed, from.units.data(), kPanel * sizeof(float));
        if (groups % 2) std::memset(packed + w.multiples_at(groups), 0, kPanel);
    }
    uint8_t *const panel = packed;
    for (int64_t g = 0; g < groups; ++g) {
        if (w.number == Number::nested_int4) {
            for (int row = 0; row < kPanel; ++row) panel[w.multiples_at(g) + row] = uint8_t(from.multiples[row * groups + g]);
            packed = panel + w.nested_codes_at(g);
        } else {
            for (int row = 0; row < kPanel; ++row, packed += 2) std::memcpy(packed, &from.scales[row * groups + g], 2);
        }
        const int64_t begin = g * w.group, end = begin + w.group;
        if (w.number == Number::int8) {
            for (int64_t i = begin; i < end; i += 4)
                for (int row = 0; row < kPanel; ++row, packed += 4) std::memcpy(packed, &from.codes[row * inputs + i], 4);
            continue;
        }
        for (int64_t i = begin; i < end; i += 32)
            for (int step = 0; step < 4; ++step)
                pack_step(w.number, &from.codes[i + 4 * step], inputs, packed), packed += weight_bits(w.number) * 32;
    }
}

// Inputs that share a scale in the packed weight, if `group` do in its source.
int64_t group_held(Number number, int64_t group) { return number == Number::nested_int4 ? kActivationGroup : group; }

}  // namespace

PackedWeight::PackedWeight(Number number, const std::vector<Source> &sources, const std::vector<int32_t> &order,
                           int64_t inputs, int64_t group, int64_t groups_per_scale, const float *bias, Pool &pool,
                           Arena &arena)
    : view_{number, int64_t(order.size()), inputs, group_held(number, group), nullptr, nullptr, groups_per_scale} {
    if (view_.integers() && (group % kActivationGroup || inputs % group))
        throw std::invalid_argument("inputs cannot be divided into groups");
    const int64_t most = number == Number::nested_int4 ? kMostGroupsPerScale : 1;
    if (groups_per_scale < 1 || groups_per_scale > most || (view_.integers() && inputs / kActivationGroup % groups_per_scale))
        throw std::invalid_argument("groups cannot share scales like that");
    if (number == Number::compressed_bfloat16 && inputs % 4) throw std::invalid_argument("inputs cannot be compressed");
    const int64_t panels = view_.panels();
    bytes_ = view_.panel_bytes() * panels;
    uint8_t *packed = arena.take<uint8_t>(bytes_);
    view_.packed = packed;
    float *ordered = bias ? arena.take<float>(panels * kPanel) : nullptr;
    view_.bias = ordered;
    if (bias) bytes_ += panels * kPanel * int64_t(sizeof(float));
    if (arena.filled()) return;
    if (bias)
        for (size_t row = 0; row < order.size(); ++row) ordered[row] = order[row] < 0 ? 0 : bias[order[row]];
    fill(packed, sources, order, group, pool);
}

int64_t PackedWeight::room(Number number, int64_t outputs, int64_t inputs, int64_t group, bool bias) {
    const Weight view{number, outputs, inputs, group_held(number, group), nullptr, nullptr};
    const size_t biases = bias ? Arena::room(view.panels() * kPanel * sizeof(float)) : 0;
    return int64_t(Arena::room(view.panel_bytes() * view.panels()) + biases);
}

void PackedWeight::fill(uint8_t *packed, const std::vector<Source> &sources, const std::vector<int32_t> &order,
                        int64_t group, Pool &pool) const {
    const Number number = view_.number;
    const bool integers = view_.integers();
    const int64_t inputs = view_.inputs, panels = view_.panels(), groups = integers ? inputs / group : 0;
    std::vector<Row> rows;
    for (int32_t row : order) {
        rows.push_back(find(sources, row));
        if (!rows.back().source || !rows.back().source->codes()) continue;
        if (!integers) throw std::invalid_argument("codes cannot be packed as floats");
        if (rows.back().source->bits() != weight_bits(number))
            throw std::invalid_argument("codes can only be packed as they are");
    }
    const bool compressed = number == Number::compressed_bfloat16, nested = number == Number::nested_int4;
    std::atomic<bool> fits = true;
    pool.run([&](int thread) {
        Panel gathered(inputs, groups);
        std::vector<uint16_t> words(compressed ? kPanel * inputs : 0);
        for (int64_t panel = thread; panel < panels && fits; panel += pool.size()) {
            for (int i = 0; i < kPanel; ++i) {
                const int64_t at = panel * kPanel + i;
                const Row row = at < int64_t(rows.size()) ? rows[at] : Row{nullptr, 0};
                uint8_t *codes = gathered.codes.data() + i * inputs;
                uint16_t *scales = gathered.scales.data() + i * groups;
                float &unit = gathered.units[i];
                int8_t *multiples = gathered.multiples.data() + i * inputs / kActivationGroup;
                if (row.source && keeps_codes(*row.source, number)) {
                    read_codes(row, number, inputs, group, codes, scales);
                    if (nested && !nest(scales, groups, group, unit, multiples)) fits = false;
                    continue;
                }
                float *floats = gathered.floats.data() + i * inputs;
                read_floats(row, inputs, floats);
                if (weight_bits(number) == 4 && integers) {
                    unit = quantize_nested(floats, inputs, group, codes, multiples);
                    for (int64_t g = 0; g < groups; ++g)
                        scales[g] = to_half(float(multiples[g * group / kActivationGroup]) * unit);
                } else if (integers) {
                    quantize(floats, number, inputs, group, codes, scales);
                }
            }
            uint8_t *place = packed + panel * view_.panel_bytes();
            pack_panel(view_, gathered, compressed ? reinterpret_cast<uint8_t *>(words.data()) : place);
            if (compressed && !compress_panel(words.data(), inputs, place)) fits = false;
        }
    });
    if (!fits) throw Incompressible();
}

}  // namespace tallow
