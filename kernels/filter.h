// Row filters, between score and normaliser: which of the keys that a query sees count, by their scores alone ("learned
// sparsity"). A key that does not count has weight 0 and takes no gradient, as if it were not seen; the choice itself
// is taken as fixed. A filter follows its score: "dot topk(8)", "gat above(0.1)".
#pragma once

#include <string>

#include "graph/csr.h"
#include "kernels/fn.h"

namespace heed {

struct Filter {  // with both, keys that pass both
  Id topk = 0;  // how many keys of highest score count, for each row and head; of equal scores those that come first in
                // the order of the keys; 0: any number
  double above = -__builtin_inf();  // keys whose score is above it

  explicit operator bool() const { return topk > 0 || above > -__builtin_inf(); }
};

// Whether a key counts: its score is above `least`, or the same and its place not behind `last`. NaN counts, so that it
// is seen in the result.
template <class T>
HEED_FN bool counts(T s, Id place, T least, Id last) {
  return !(s <= least) || (s == least && place <= last);
}

// A filter as it follows a score: " topk(8)"; "" where all pass.
std::string text_of(const Filter& filter);

// A score's text and the filters after it, which are those calls name(argument) at the end that follow a blank and,
// before it, a word or ')': "a*leaky(q + k) topk(8)" has one, "a * leaky(q)" none. Throws Error "column 5: ..." for a
// filter that there is not and for an argument that it does not take.
struct FilteredText {
  std::string score;
  Filter filter;
};
FilteredText split_filter(const std::string& text);

}  // namespace heed
