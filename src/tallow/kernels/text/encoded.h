// Texts encoded one after another into one array of tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "texts.h"

namespace tallow {

// `encode(text, out)` writes the tokens of a text and returns the place behind them; `end` follows each text (if not
// negative). There is room for a token a byte and the ends. How many tokens each text has goes to `lengths`, `end`
// counted; -1 and no token for one that holds a string of `stops`. Returned: how many tokens there are.
template <typename Encode>
int64_t encode_all(const Texts &texts, const std::vector<std::string> &stops, int64_t end, uint32_t *tokens,
                   int64_t *lengths, const Encode &encode) {
    uint32_t *out = tokens;
    for (int64_t i = 0; i < texts.count; ++i) {
        bool stopped = false;
        for (const std::string &stop : stops) stopped = stopped || texts[i].find(stop) != std::string_view::npos;
        uint32_t *const start = out;
        if (!stopped) {
            out = encode(texts[i], out);
            if (end >= 0) *out++ = uint32_t(end);
        }
        lengths[i] = stopped ? -1 : out - start;
    }
    return out - tokens;
}

}  // namespace tallow
