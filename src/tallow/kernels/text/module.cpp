// The operations on texts, each bound where it is defined.
#include <nanobind/nanobind.h>

namespace tallow {
void bind_bpe(nanobind::module_ &);
void bind_candidates(nanobind::module_ &);
void bind_characters(nanobind::module_ &);
void bind_counts(nanobind::module_ &);
void bind_gram_index(nanobind::module_ &);
void bind_hashed_grams(nanobind::module_ &);
void bind_kept_lines(nanobind::module_ &);
void bind_labels(nanobind::module_ &);
void bind_lattices(nanobind::module_ &);
void bind_longest_match(nanobind::module_ &);
void bind_merges(nanobind::module_ &);
void bind_minhash(nanobind::module_ &);
void bind_ngrams(nanobind::module_ &);
void bind_repeats(nanobind::module_ &);
void bind_segments(nanobind::module_ &);
void bind_substrings(nanobind::module_ &);
void bind_units(nanobind::module_ &);
void bind_word_counter(nanobind::module_ &);
void bind_wordpieces(nanobind::module_ &);
}  // namespace tallow

NB_MODULE(_text, m) {
    nanobind::set_leak_warnings(false);  // what caches hold when Python ends is no leak
    tallow::bind_bpe(m);
    tallow::bind_candidates(m);
    tallow::bind_characters(m);
    tallow::bind_counts(m);
    tallow::bind_gram_index(m);
    tallow::bind_hashed_grams(m);
    tallow::bind_kept_lines(m);
    tallow::bind_labels(m);
    tallow::bind_lattices(m);
    tallow::bind_longest_match(m);
    tallow::bind_merges(m);
    tallow::bind_minhash(m);
    tallow::bind_ngrams(m);
    tallow::bind_repeats(m);
    tallow::bind_segments(m);
    tallow::bind_substrings(m);
    tallow::bind_units(m);
    tallow::bind_word_counter(m);
    tallow::bind_wordpieces(m);
}
