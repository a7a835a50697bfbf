// Elements are copied out one by one through memcpy, so that neither alignment nor order of the stored bytes matters.
#include "datasets/array.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "datasets/files.h"

namespace heed {
namespace {

struct DtypeName {
  const char* descr;  // without the byte order
  Dtype dtype;
  int bytes;
};
constexpr std::array<DtypeName, 12> kDtypes{{{"f4", Dtype::f4, 4},
                                             {"f8", Dtype::f8, 8},
                                             {"i1", Dtype::i1, 1},
                                             {"i2", Dtype::i2, 2},
                                             {"i4", Dtype::i4, 4},
                                             {"i8", Dtype::i8, 8},
                                             {"u1", Dtype::u1, 1},
                                             {"u2", Dtype::u2, 2},
                                             {"u4", Dtype::u4, 4},
                                             {"u8", Dtype::u8, 8},
                                             {"b1", Dtype::boolean, 1},
                                             {"?", Dtype::boolean, 1}}};

// Whether T can hold x: floats round, but do not overflow; integers are exact.
template <class T, class S>
bool fits(S x) {
  if constexpr (std::is_integral_v<T> && std::is_integral_v<S>) {
    return std::in_range<T>(x);
  } else if constexpr (std::is_integral_v<T>) {
    double top = std::ldexp(1.0, std::numeric_limits<T>::digits);  // one above T's largest
    double low = static_cast<double>(std::numeric_limits<T>::lowest());
    return x == std::trunc(x) && x >= low && x < top;
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<S, double>) {
    return !std::isfinite(x) || std::abs(x) <= std::numeric_limits<float>::max();
  } else {
    return true;
  }
}

template <class T, class S>
std::vector<T> convert(const Array& a) {
  Offset n = a.size();
  std::size_t dimensions = a.shape.size();
  std::vector<T> out(static_cast<std::size_t>(n));
  std::vector<Offset> at(dimensions, 0);  // the element that is read, by its indices
  for (Offset from = 0; from < n; ++from) {
    Offset to = from;
    if (a.fortran_order && dimensions > 1) {
      to = 0;
      for (std::size_t d = 0; d < dimensions; ++d) to = to * a.shape[d] + at[d];
      for (std::size_t d = 0; d < dimensions && ++at[d] == a.shape[d]; ++d) at[d] = 0;
    }
    S x;
    std::memcpy(&x, a.bytes.data() + from * static_cast<Offset>(sizeof(S)), sizeof(S));
    if (!fits<T>(x) || (a.dtype == Dtype::boolean && x > 1))
      fail(a.name + ": element " + std::to_string(to) + " of " + shape_text(a.shape) + " is " + std::to_string(x) +
           ", which does not fit " +
           (a.dtype == Dtype::boolean ? "a truth value"
            : std::is_integral_v<T>   ? "an integer"
                                      : "a float") +
           " of " + std::to_string(8 * sizeof(T)) + " bits");
    out[to] = static_cast<T>(x);
  }
  return out;
}

}  // namespace

Dtype dtype_of(std::string_view descr) {
  if (descr.empty()) return Dtype::other;
  bool ordered = std::string_view("<>=|").find(descr[0]) != std::string_view::npos;
  std::string_view name = ordered ? descr.substr(1) : descr;
  if (name.starts_with('U') || name.starts_with('S') || name.starts_with('a')) return Dtype::text;
  if (name.starts_with('O')) return Dtype::object;
  for (const auto& known : kDtypes)
    if (name == known.descr && (descr[0] != '>' || known.bytes == 1)) return known.dtype;
  return Dtype::other;
}

int bytes_of(Dtype dtype) {
  for (const auto& known : kDtypes)
    if (known.dtype == dtype) return known.bytes;
  return 0;
}

std::string shape_text(const std::vector<Offset>& shape) {
  std::string out;
  for (Offset extent : shape) out += (out.empty() ? "" : " x ") + std::to_string(extent);
  return shape.empty() ? "one element" : shape.size() == 1 ? out + " elements" : out;
}

Offset bytes_of(const std::string& name, Dtype dtype, const std::vector<Offset>& shape) {
  bool empty = false;
  bool countable = true;
  Offset total = bytes_of(dtype);
  for (Offset extent : shape) {
    if (extent < 0) fail(name + ": claims the shape " + shape_text(shape));
    empty = empty || extent == 0;
    countable = countable && !__builtin_mul_overflow(total, extent, &total);
  }
  if (empty) return 0;
  if (!countable) fail(name + ": claims " + shape_text(shape) + ", more bytes than can be counted");
  return total;
}

Offset Array::size() const {
  int each = bytes_of(dtype);
  return each == 0 ? 0 : static_cast<Offset>(bytes.size()) / each;
}

template <class T>
std::vector<T> Array::as() const {
  if (bytes_of(name, dtype, shape) != static_cast<Offset>(bytes.size()))
    fail(name + ": " + std::to_string(bytes.size()) + " bytes for " + shape_text(shape) + " of type " +
         printable(descr));
  switch (dtype) {
    case Dtype::f4:
      return convert<T, float>(*this);
    case Dtype::f8:
      return convert<T, double>(*this);
    case Dtype::i1:
      return convert<T, std::int8_t>(*this);
    case Dtype::i2:
      return convert<T, std::int16_t>(*this);
    case Dtype::i4:
      return convert<T, std::int32_t>(*this);
    case Dtype::i8:
      return convert<T, std::int64_t>(*this);
    case Dtype::u1:
    case Dtype::boolean:
      return convert<T, std::uint8_t>(*this);
    case Dtype::u2:
      return convert<T, std::uint16_t>(*this);
    case Dtype::u4:
      return convert<T, std::uint32_t>(*this);
    case Dtype::u8:
      return convert<T, std::uint64_t>(*this);
    case Dtype::object:
      fail(name + ": holds Python objects, which are never read");
    case Dtype::text:
      fail(name + ": holds text (" + printable(descr) + "), not numbers");
    case Dtype::other:
      break;
  }
  fail(name + ": elements of type " + printable(descr) + " are not read");
}

template std::vector<float> Array::as() const;
template std::vector<double> Array::as() const;
template std::vector<std::int32_t> Array::as() const;
template std::vector<std::int64_t> Array::as() const;
template std::vector<std::uint8_t> Array::as() const;

SparseRows sparse_rows(const std::string& name, const std::vector<Offset>& shape, const Array& indptr,
                       const Array& indices, const Array& data) {
  constexpr Offset kLargest = std::numeric_limits<Id>::max();
  if (shape.size() != 2 || shape[0] < 0 || shape[1] < 0 || shape[0] > kLargest || shape[1] > kLargest)
    fail(name + ": a sparse matrix cannot have the shape " + shape_text(shape));
  if (indptr.shape.size() != 1 || indices.shape.size() != 1 || data.shape.size() != 1)
    fail(name + ": indptr, indices and data of a sparse matrix must have one dimension");
  if (indptr.size() != shape[0] + 1)
    fail(name + ": " + shape_text(shape) + " with " + std::to_string(indptr.size()) + " offsets; it takes one a row" +
         " and one more");
  // A wide matrix costs memory by its columns: they must be in proportion to what it holds.
  if (shape[1] > (Offset{1} << 20) + 64 * indices.size())
    fail(name + ": claims " + std::to_string(shape[1]) + " columns for " + std::to_string(indices.size()) + " entries");
  if (indices.size() != data.size())
    fail(name + ": " + std::to_string(indices.size()) + " column ids for " + std::to_string(data.size()) + " values");

  auto offsets = indptr.as<Offset>();
  auto ids = indices.as<Id>();
  auto values = data.as<float>();
  SparseRows out{.pattern = {.rows = static_cast<Id>(shape[0]), .cols = static_cast<Id>(shape[1])}, .values = {}};
  if (offsets.front() != 0 || offsets.back() != indices.size())
    fail(name + ": offsets run from " + std::to_string(offsets.front()) + " to " + std::to_string(offsets.back()) +
         ", not from 0 to " + std::to_string(indices.size()));
  for (Id i = 0; i < out.pattern.rows; ++i)
    if (offsets[i] > offsets[i + 1]) fail(name + ": row " + std::to_string(i) + " ends before it begins");

  out.pattern.ids.reserve(ids.size());
  out.values.reserve(ids.size());
  std::vector<std::pair<Id, float>> row;
  for (Id i = 0; i < out.pattern.rows; ++i) {
    row.clear();
    for (Offset e = offsets[i]; e < offsets[i + 1]; ++e) {
      if (ids[e] < 0 || ids[e] >= out.pattern.cols)
        fail(name + ": row " + std::to_string(i) + " names column " + std::to_string(ids[e]) + ", but there are " +
             std::to_string(out.pattern.cols));
      row.emplace_back(ids[e], values[e]);
    }
    std::stable_sort(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t e = 0; e < row.size(); ++e) {
      if (e > 0 && row[e].first == row[e - 1].first) {
        out.values.back() += row[e].second;
        continue;
      }
      out.pattern.ids.push_back(row[e].first);
      out.values.push_back(row[e].second);
    }
    out.pattern.offsets.push_back(out.pattern.edges());
  }
  return out;
}

}  // namespace heed
