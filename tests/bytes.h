// Files as bytes, made by hand: pickles, NumPy's arrays and archives of them, a small Planetoid set.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace heed::test {

inline std::string le(std::uint64_t x, int bytes) {  // little-endian
  std::string out;
  for (int b = 0; b < bytes; ++b) out += static_cast<char>(x >> (8 * b));
  return out;
}
template <class T>
inline std::string raw(const std::vector<T>& x) {
  return std::string(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(T));
}

// Python 2 pickles, protocol 2, as the public files have them.
namespace py {
inline std::string whole(const std::string& body) { return "\x80\x02" + body + "."; }
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string integer(std::int64_t x) { return "J" + le(static_cast<std::uint64_t>(x), 4); }
inline std::string text(const std::string& s) { return "U" + le(s.size(), 1) + s; }
inline std::string bytes(const std::string& s) { return "T" + le(s.size(), 4) + s; }
inline std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const auto& item : items) out += item;
  return out + "t";
}
inline std::string dtype(const std::string& name, const std::string& order = "<") {
  return global("numpy", "dtype") + text(name) + "K" + le(0, 1) + "K" + le(1, 1) + "\x87R" +
         tuple({"K\x03", text(order), "N", "N", "N", integer(-1), integer(-1), "K" + le(0, 1)}) + "b";
}
inline std::string array(const std::vector<std::int64_t>& shape, const std::string& type, const std::string& data,
                         const std::string& fortran = "\x89", const std::string& module = "numpy.core.multiarray") {
  std::vector<std::string> extents;
  for (auto n : shape)  // LONG1 of 8 bytes
    extents.push_back("\x8a\x08" + le(static_cast<std::uint64_t>(n), 8));
  return global(module, "_reconstruct") + global("numpy", "ndarray") + "K" + le(0, 1) + "\x85" + text("b") + "\x87R" +
         tuple({"K\x01", tuple(extents), dtype(type), fortran, bytes(data)}) + "b";
}
inline std::string csr(std::int64_t rows, std::int64_t cols, const std::vector<std::int32_t>& indptr,
                       const std::vector<std::int32_t>& indices, const std::vector<float>& data,
                       const std::string& module = "scipy.sparse.csr") {
  auto n = static_cast<std::int64_t>(indices.size());
  return global(module, "csr_matrix") + ")\x81}(" + text("format") + text("csr") + text("_shape") +
         tuple({"\x8a\x08" + le(static_cast<std::uint64_t>(rows), 8),
                "\x8a\x08" + le(static_cast<std::uint64_t>(cols), 8)}) +
         text("indptr") + array({static_cast<std::int64_t>(indptr.size())}, "i4", raw(indptr)) + text("indices") +
         array({n}, "i4", raw(indices)) + text("data") +
         array({static_cast<std::int64_t>(data.size())}, "f4", raw(data)) + "ub";
}
inline std::string graph(const std::vector<std::vector<std::int64_t>>& neighbours) {
  std::string out = global("collections", "defaultdict") + global("__builtin__", "list") + "\x85R(";
  for (std::size_t i = 0; i < neighbours.size(); ++i) {
    out += integer(static_cast<std::int64_t>(i)) + "](";
    for (auto j : neighbours[i]) out += integer(j);
    out += "e";
  }
  return out + "u";
}
}  // namespace py

// A Planetoid set of 507 nodes: 2 of training, 500 of validation, 1 neither, then ids 503 and 505 in the test set and
// 504 and 506 in none of the files. Row i of allx has its one entry in column i mod 3; classes alternate.
struct Tiny {
  std::map<std::string, std::string> files;
  static constexpr int known = 503, nodes = 507;

  Tiny() {
    auto matrix = [](int rows) {
      std::vector<std::int32_t> indptr{0}, indices;
      std::vector<float> data;
      for (int i = 0; i < rows; ++i) {
        indices.push_back(i % 3);
        data.push_back(1.0f + static_cast<float>(i));
        indptr.push_back(i + 1);
      }
      return py::whole(py::csr(rows, 3, indptr, indices, data));
    };
    auto labels = [](int rows) {
      std::vector<std::int32_t> one_hot;
      for (int i = 0; i < rows; ++i) one_hot.insert(one_hot.end(), {i % 2 == 0, i % 2});
      return py::whole(py::array({rows, 2}, "i4", raw(one_hot)));
    };
    files["x"] = matrix(2);
    files["y"] = labels(2);
    files["allx"] = matrix(known);
    files["ally"] = labels(known);
    files["tx"] = py::whole(py::csr(2, 3, {0, 2, 3}, {2, 0, 1}, {7, 8, 9}));  // the ids of row 0 do not rise
    files["ty"] = py::whole(py::array({2, 2}, "i4", raw(std::vector<std::int32_t>{0, 1, 1, 0})));
    files["test.index"] = "505\n503\n";
    std::vector<std::vector<std::int64_t>> neighbours(nodes);
    neighbours[0] = {1, 1, 0, 505};  // a repeat and a loop
    neighbours[1] = {0};
    neighbours[503] = {2};
    files["graph"] = py::whole(py::graph(neighbours));
  }
};

// Zip archives.
inline std::uint32_t crc32(const std::string& bytes) {
  std::uint32_t crc = 0xffffffff;
  for (unsigned char c : bytes) {
    crc ^= c;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}
struct Packed {
  std::string name;
  std::string bytes;  // as they come out
  bool deflate = false;
  std::uint32_t claimed = 0;  // unpacked bytes claimed; 0: the truth
  std::uint16_t method = 0;   // claimed; 0: the truth
};
inline std::string zip(const std::vector<Packed>& entries) {
  std::string out, directory;
  for (const auto& e : entries) {
    std::string body = e.bytes;
    if (e.deflate) {  // one block of deflate, itself stored
      if (body.size() >= 65536) throw std::length_error("one block of deflate");
      body = "\x01" + le(body.size(), 2) + le(~body.size(), 2) + body;
    }
    std::uint16_t method = e.method != 0 ? e.method : e.deflate ? 8 : 0;
    std::string common = le(20, 2) + le(0, 2) + le(method, 2) + le(0, 4) + le(crc32(e.bytes), 4) + le(body.size(), 4) +
                         le(e.claimed != 0 ? e.claimed : e.bytes.size(), 4) + le(e.name.size(), 2) + le(0, 2);
    directory +=
        "PK\x01\x02" + le(20, 2) + common + le(0, 2) + le(0, 2) + le(0, 2) + le(0, 4) + le(out.size(), 4) + e.name;
    out += "PK\x03\x04" + common + e.name + body;
  }
  std::size_t begin = out.size();
  return out + directory + "PK\x05\x06" + le(0, 4) + le(entries.size(), 2) + le(entries.size(), 2) +
         le(directory.size(), 4) + le(begin, 4) + le(0, 2);
}
inline std::string npy_of(std::string header, const std::string& data) {
  header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
  return "\x93NUMPY" + le(1, 1) + le(0, 1) + le(header.size(), 2) + header + data;
}
inline std::string npy(const std::string& descr, const std::string& shape, const std::string& data,
                       const std::string& fortran = "False") {
  return npy_of("{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }", data);
}

}  // namespace heed::test
