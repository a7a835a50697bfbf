// Python pickles, protocols 2 to 4, read without running anything: values become a small tree, and the few types that
// datasets are made of (NumPy arrays, SciPy matrices, lists, dictionaries) are tags in it. A pickle that names any
// other type or function is refused by that name. Time and memory are bounded by the length of the input.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/array.h"

namespace heed {

class Pickle {
 public:
  using Ref = std::uint32_t;  // a value's number; values may be shared, and may hold themselves
  static constexpr Ref kNone = 0xffffffff;
  enum class Kind : std::uint8_t { none, boolean, integer, real, string, list, tuple, dict, type, object };
  enum class Type : std::uint8_t { reconstruct, ndarray, dtype, csr_matrix, list, defaultdict };

  struct Value {
    Kind kind = Kind::none;
    Type type = {};            // of a type: which; of an object: what it was made by
    std::uint64_t at = 0;      // the byte at which it begins
    std::int64_t integer = 0;  // or boolean
    double real = 0;
    std::string_view string;  // bytes or text
    std::vector<Ref> items;   // of a list or tuple; of a dict or a defaultdict: key, value, key, value, ...
    Ref args = kNone;         // of an object: the tuple it was made from
    Ref state = kNone;        // and the state it was then given
  };

  // Throws Error naming `file`, the byte and what is wrong there.
  Pickle(std::string bytes, std::string file);
  static Pickle read(const std::filesystem::path& path);

  Ref root() const { return root_; }
  std::size_t bytes() const { return bytes_->size(); }
  const Value& operator[](Ref r) const { return values_[r]; }

  // What a value is known to be. Throws Error naming the file, the byte and what was found where it is something else.
  std::int64_t integer(Ref r) const;
  std::string_view string(Ref r) const;
  std::span<const Ref> list(Ref r) const;
  std::span<const Ref> dict(Ref r) const;           // of a dict or defaultdict: key, value, key, value, ...
  Ref field(Ref dict, std::string_view key) const;  // the value under a key of text
  Array array(Ref r) const;                         // numpy.ndarray
  SparseRows csr_matrix(Ref r) const;               // scipy.sparse.csr_matrix
  std::string place(Ref r) const;                   // "cora.graph, byte 17"
  [[noreturn]] void expected(Ref r, const char* what) const;

 private:
  friend class PickleMachine;
  std::span<const Ref> tuple(Ref r, std::size_t size) const;
  std::vector<Offset> shape(Ref r) const;
  std::string dtype(Ref r) const;

  std::shared_ptr<const std::string> bytes_;  // strings of the values lie in here
  std::string file_;
  std::vector<Value> values_;
  Ref root_ = 0;
};

}  // namespace heed
