#include "train/safetensors.h"

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>

#include "graph/error.h"
#include "graph/files.h"

namespace heed {
namespace {

using Json = nlohmann::ordered_json;
static_assert(std::endian::native == std::endian::little);

float number(const char* bytes, const std::string& dtype) {
  auto as = [&]<class N>(N value) {
    std::memcpy(&value, bytes, sizeof(N));
    return value;
  };
  if (dtype == "F32") return as(0.0f);
  if (dtype == "F64") return static_cast<float>(as(0.0));
  const auto bits = as(std::uint16_t{});
  if (dtype == "BF16") return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  return static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits));
}

std::uint64_t width_of(const std::string& dtype) {
  if (dtype == "F64") return 8;
  if (dtype == "F32") return 4;
  return dtype == "F16" || dtype == "BF16" ? 2 : 0;
}

// A list of numbers that are whole and not negative; false where it is anything else.
bool read_counts(const Json& list, std::vector<std::uint64_t>& out) {
  if (!list.is_array()) return false;
  for (const Json& x : list) {
    if (!x.is_number_unsigned()) return false;
    out.push_back(x.get<std::uint64_t>());
  }
  return true;
}

}  // namespace

std::string_view bytes_of(const Matrix<float>& x) {
  return {reinterpret_cast<const char*>(x.data()), static_cast<std::size_t>(x.size()) * sizeof(float)};
}

const Matrix<float>* Safetensors::find(std::string_view name) const {
  for (const Weight& w : weights)
    if (w.name == name) return &w.value;
  return nullptr;
}

Safetensors read_safetensors(const std::filesystem::path& path) {
  return parse_safetensors(read_file(path), path.string());
}

Safetensors parse_safetensors(std::string_view bytes, const std::string& file) {
  auto bad = [&](const std::string& what) { fail(file + ": not a safetensors file: " + what); };
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length)) bad("it ends after " + std::to_string(bytes.size()) + " bytes");
  std::memcpy(&length, bytes.data(), sizeof(length));
  bytes.remove_prefix(sizeof(length));
  if (length > bytes.size())
    bad("its header claims " + std::to_string(length) + " bytes, the file has " + std::to_string(bytes.size()) +
        " more");
  const std::string_view data = bytes.substr(length);
  // Nesting is cut at the depth that the format knows, so that a header of brackets costs nothing.
  auto shallow = [](int depth, Json::parse_event_t, Json&) {
    if (depth > 3) throw std::length_error("nesting");
    return true;
  };
  Json header;
  try {
    header = Json::parse(bytes.substr(0, length), shallow);
  } catch (const std::exception&) {
  }
  if (!header.is_object()) bad("its header is not a JSON object");

  Safetensors out{.file = file};
  struct Entry {
    std::string name, dtype;
    Offset rows, cols;
    std::uint64_t begin, end;
  };
  std::vector<Entry> entries;
  for (const auto& [name, entry] : header.items()) {
    const std::string where = file + ": tensor '" + printable(name) + "'";
    if (!entry.is_object()) bad("the entry '" + printable(name) + "' is not an object");
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) bad("the metadata '" + printable(key) + "' is not text");
        out.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    std::vector<std::uint64_t> shape, place;
    if (!entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
        !read_counts(entry["shape"], shape) || !entry.contains("data_offsets") ||
        !read_counts(entry["data_offsets"], place) || place.size() != 2)
      fail(where + " lacks a dtype, a shape or two data_offsets");
    const auto dtype = entry["dtype"].get<std::string>();
    const std::uint64_t each = width_of(dtype);
    if (each == 0) fail(where + " is of type " + printable(dtype) + "; F32, F64, F16 and BF16 are read");
    if (shape.empty() || shape.size() > 2)
      fail(where + " has " + std::to_string(shape.size()) + " dimensions; 1 and 2 are read");
    if (place[0] > place[1] || place[1] > data.size())
      fail(where + " lies at " + std::to_string(place[0]) + " to " + std::to_string(place[1]) + " of " +
           std::to_string(data.size()) + " bytes");
    const std::uint64_t rows = shape.size() == 2 ? shape[0] : 1, cols = shape.back();
    std::uint64_t bytes = 0;
    if (rows > data.size() || cols > data.size() || __builtin_mul_overflow(rows, cols, &bytes) ||
        __builtin_mul_overflow(bytes, each, &bytes) || bytes != place[1] - place[0])
      fail(where + ": " + std::to_string(rows) + " x " + std::to_string(cols) + " of type " + dtype + " do not take " +
           std::to_string(place[1] - place[0]) + " bytes");
    entries.push_back({name, dtype, static_cast<Offset>(rows), static_cast<Offset>(cols), place[0], place[1]});
  }
  // Tensors lie one after the other, so together they claim no more than the file holds.
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  std::uint64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at)
      fail(file + ": tensor '" + printable(e.name) + "' begins at byte " + std::to_string(e.begin) +
           (e.begin < at ? ", inside another one" : ", after a hole"));
    at = e.end;
  }
  if (at != data.size()) fail(file + ": " + std::to_string(data.size() - at) + " bytes at the end belong to no tensor");
  for (const Entry& e : entries) {
    Weight& w = out.weights.emplace_back();
    w.name = e.name;
    w.value.resize(e.rows, e.cols);
    for (Offset t = 0; t < w.value.size(); ++t) {
      const float x = number(data.data() + e.begin + static_cast<std::uint64_t>(t) * width_of(e.dtype), e.dtype);
      if (!std::isfinite(x))
        fail(file + ": tensor '" + printable(e.name) + "': number " + std::to_string(t) + " is " + std::to_string(x));
      w.value.data()[t] = x;
    }
  }
  return out;
}

std::string safetensors_of(const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata) {
  Json header;
  header["__metadata__"] = metadata;
  std::size_t at = 0;
  for (const Tensor& t : tensors) {
    const std::size_t end = at + t.bytes.size();
    header[t.name] = {{"dtype", t.dtype}, {"shape", {t.rows, t.cols}}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the numbers begin at a multiple of 8 bytes
  const std::uint64_t length = text.size();
  std::string out(sizeof(length), '\0');
  std::memcpy(out.data(), &length, sizeof(length));
  out.reserve(out.size() + text.size() + at);
  out += text;
  for (const Tensor& t : tensors) out += t.bytes;
  return out;
}

std::string to_safetensors(const std::vector<Weight>& weights, const std::map<std::string, std::string>& metadata) {
  std::vector<Tensor> tensors;
  for (const Weight& w : weights) tensors.push_back({w.name, "F32", w.value.rows(), w.value.cols(), bytes_of(w.value)});
  return safetensors_of(tensors, metadata);
}

}  // namespace heed
