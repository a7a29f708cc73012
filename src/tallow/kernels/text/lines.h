// The lines of a text: what newlines part, the last piece only if it is not empty.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>

#include "classes.h"
#include "utf8.h"

namespace tallow {

template <class Take>
void for_each_line(std::string_view text, Take take) {
    while (!text.empty()) {
        const size_t length = std::min(text.find('\n'), text.size());
        take(text.substr(0, length));
        text.remove_prefix(std::min(length + 1, text.size()));
    }
}

inline int64_t count_characters(std::string_view text) {
    return std::count_if(text.begin(), text.end(), [](char byte) { return !continues(byte); });
}

// Where the last character of what is not empty begins.
inline const char *last_place(std::string_view text) {
    const char *at = text.data() + text.size() - 1;
    while (continues(*at)) --at;
    return at;
}

inline char32_t last_character(std::string_view text) {
    const char *at = last_place(text);
    return next_character(at);
}

// Without white space at both ends.
inline std::string_view strip(std::string_view text, const Classes &kinds) {
    while (!text.empty()) {
        const char *at = text.data();
        if (!(kinds[next_character(at)] & Classes::SPACE)) break;
        text.remove_prefix(size_t(at - text.data()));
    }
    while (!text.empty()) {
        const char *at = last_place(text), *begin = at;
        if (!(kinds[next_character(at)] & Classes::SPACE)) break;
        text.remove_suffix(size_t(text.data() + text.size() - begin));
    }
    return text;
}

}  // namespace tallow
