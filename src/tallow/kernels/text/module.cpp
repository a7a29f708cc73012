// The operations on texts, each bound where it is defined.
#include <nanobind/nanobind.h>

namespace tallow {
void bind_characters(nanobind::module_ &);
void bind_hashed_grams(nanobind::module_ &);
void bind_labels(nanobind::module_ &);
void bind_ngrams(nanobind::module_ &);
}  // namespace tallow

NB_MODULE(_text, m) {
    tallow::bind_characters(m);
    tallow::bind_hashed_grams(m);
    tallow::bind_labels(m);
    tallow::bind_ngrams(m);
}
