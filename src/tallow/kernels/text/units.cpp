// The lines or paragraphs of texts, and what each is known by; units.py says what these are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "arrays.h"
#include "blake2b.h"
#include "classes.h"
#include "lines.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

class UnitFinder {
public:
    UnitFinder(const Classes &kinds, bool paragraphs, int64_t min_chars) : kinds_(kinds), paragraphs_(paragraphs), min_chars_(min_chars) {}

    std::vector<int32_t> places;   // row, begin and end of each
    std::vector<uint64_t> hashes;  // two words of each

    void find(int64_t row, std::string_view text) {
        size_t at = 0, begin = 0, end = 0, behind = 0;  // of the unit that is open, if any; where the one before it ended
        bool is_open = false;
        for_each_line(text, [&](std::string_view line) {
            const size_t line_begin = at;
            at = std::min(at + line.size() + 1, text.size());
            const bool blank = is_blank(line);
            if (is_open && (!paragraphs_ || !blank)) {
                if (paragraphs_ && end + 1 == line_begin) {
                    end += 1 + line.size();
                    return;
                }
                take(row, text, begin, end, begin, line_begin);
                behind = end;
                is_open = false;
            }
            if (paragraphs_ && blank) return;
            begin = line_begin;
            end = line_begin + line.size();
            is_open = true;
        });
        if (!is_open) return;
        const bool first = begin == 0 || (paragraphs_ && behind == 0);
        const bool closed = !paragraphs_ && end < text.size();
        take(row, text, begin, end, first || closed ? begin : behind, closed ? text.size() : end);
    }

private:
    bool is_blank(std::string_view line) const {
        for (const char *at = line.data(); at < line.data() + line.size();) {
            if (!(kinds_[next_character(at)] & Classes::SPACE)) return false;
        }
        return true;
    }

    void take(int64_t row, std::string_view text, size_t begin, size_t end, size_t cut_begin, size_t cut_end) {
        if (int64_t(end - begin) < min_chars_) return;
        if (room_.size() < end - begin) room_.resize(2 * (end - begin));
        char *to = room_.data();
        int64_t chars = 0;
        bool spaced = false;
        for (const char *at = text.data() + begin; at < text.data() + end;) {
            const char *const from = at;
            if (kinds_[next_character(at)] & Classes::SPACE) {
                spaced = true;
                continue;
            }
            if (spaced && chars > 0) {
                *to++ = ' ';
                ++chars;
            }
            spaced = false;
            for (const char *byte = from; byte < at; ++byte) *to++ = *byte;
            ++chars;
        }
        if (chars < min_chars_) return;
        const std::array<uint64_t, 2> digest = Blake2b128::digest({room_.data(), size_t(to - room_.data())});
        hashes.insert(hashes.end(), digest.begin(), digest.end());
        places.insert(places.end(), {int32_t(row), int32_t(cut_begin), int32_t(cut_end)});
    }

    const Classes kinds_;
    const bool paragraphs_;
    const int64_t min_chars_;
    std::vector<char> room_;
};

std::tuple<Array<int32_t>, Array<uint64_t>> find_units(const TextPlaces &places, const ClassPlaces &classes, bool paragraphs, int64_t min_chars) {
    UnitFinder finder(Classes(classes), paragraphs, min_chars);
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        for (int64_t i = 0; i < texts.count; ++i) finder.find(i, texts[i]);
    }
    return {as_array(std::move(finder.places)), as_array(std::move(finder.hashes))};
}

}  // namespace

void bind_units(nb::module_ &m) { m.def("find_units", &find_units); }

}  // namespace tallow
