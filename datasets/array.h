// Arrays as NumPy stores them, in .npy and .npz files and in pickles: an element type, a shape and raw bytes, which
// become numbers of the wanted type by conversions that lose nothing but a float's last digits. And rows of a sparse
// matrix as SciPy stores them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "graph/csr.h"

namespace heed {

// `text`, `object` and `other` (complex, half, dates, big-endian, ...) are known by name only and never read.
enum class Dtype { f4, f8, i1, i2, i4, i8, u1, u2, u4, u8, boolean, text, object, other };

struct Array {
  std::string name;  // for messages: file and entry
  Dtype dtype = Dtype::f4;
  std::string descr;          // NumPy's name of the type
  std::vector<Offset> shape;  // none: one number
  bool fortran_order = false;
  std::vector<std::byte> bytes;  // as stored; none of a type that is not read

  Offset size() const;  // elements

  // The elements in row-major order, whatever the stored order. T is float, double, int32, int64 or uint8 (for masks).
  // Throws Error naming the first element that T cannot hold (a fraction in an integer, a number out of range), and for
  // types that are not read.
  template <class T>
  std::vector<T> as() const;
};

Dtype dtype_of(std::string_view descr);  // "<f4" -> f4
int bytes_of(Dtype dtype);               // of one element; 0 for a type that is not read
std::string shape_text(const std::vector<Offset>& shape);

// Bytes of an array. Throws Error, opened by `name`, where an extent is negative or the product cannot be counted.
Offset bytes_of(const std::string& name, Dtype dtype, const std::vector<Offset>& shape);

struct SparseRows {
  Csr pattern;
  std::vector<float> values;  // entries, in the pattern's order
};

// SciPy's CSR: the column ids of a row may come in any order, and repeated ones are summed. Throws Error, opened by
// `name`, where the parts do not fit each other.
SparseRows sparse_rows(const std::string& name, const std::vector<Offset>& shape, const Array& indptr,
                       const Array& indices, const Array& data);

}  // namespace heed
