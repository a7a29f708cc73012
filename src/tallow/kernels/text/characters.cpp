// How many characters texts have.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>

#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

void count_characters(const TextPlaces &places, uintptr_t counts) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    for (int64_t i = 0; i < texts.count; ++i) {
        const std::string_view text = texts[i];
        reinterpret_cast<int32_t *>(counts)[i] = int32_t(std::count_if(text.begin(), text.end(), [](char byte) { return !continues(byte); }));
    }
}

}  // namespace

void bind_characters(nb::module_ &m) { m.def("count_characters", &count_characters); }

}  // namespace tallow
