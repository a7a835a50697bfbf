// An entry's size is a claim until its bytes are there: it is held against the packed size before any memory is asked
// for, against the array's header before the numbers are read, and against the entry's end and checksum after.
#include "datasets/npz.h"

#include <zip.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "datasets/files.h"
#include "datasets/gz.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

constexpr Offset kLongestHeader = Offset{1} << 16;

// The header's grammar: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } and then blanks to the line's end.
class Header {
 public:
  Header(std::string_view text, Array& out) : text_(text), out_(out) {}

  void parse() {
    bool descr = false, order = false, shape = false;
    expect('{');
    while (!accept('}')) {
      std::string key = quoted();
      expect(':');
      if (key == "descr" && !descr) {
        descr = true;
        skip();
        if (at_ < text_.size() && text_[at_] == '[') bad("arrays of records are not read");
        out_.descr = quoted();
      } else if (key == "fortran_order" && !order) {
        order = true;
        out_.fortran_order = word("True") || !(word("False") || (bad("expected True or False"), false));
      } else if (key == "shape" && !shape) {
        shape = true;
        extents();
      } else {
        bad("the key '" + printable(key) + "' is unknown or repeated");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size()) bad("something follows the closing brace");
    if (!descr || !order || !shape) bad("it needs descr, fortran_order and shape");
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(out_.name + ": header, character " + std::to_string(at_) + ": " + what);
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char c) {
    skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) bad(std::string("expected '") + c + "'");
  }
  bool word(std::string_view w) {
    skip();
    if (!text_.substr(at_).starts_with(w)) return false;
    at_ += w.size();
    return true;
  }
  std::string quoted() {
    skip();
    char quote = at_ < text_.size() ? text_[at_] : ' ';
    if (quote != '\'' && quote != '"') bad("expected a quoted name");
    std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) bad("a quoted name has no end");
    std::string out(text_.substr(at_ + 1, end - at_ - 1));
    if (out.find('\\') != std::string::npos) bad("a name has a backslash");
    at_ = end + 1;
    return out;
  }
  void extents() {  // (), (3,), (3, 4) or (3, 4,); Python 2 wrote 3L
    expect('(');
    while (!accept(')')) {
      skip();
      Offset n = 0;
      const char* begin = text_.data() + at_;
      auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), n);
      if (error != std::errc{} || n < 0) bad("expected an extent of 0 to 2^63 - 1");
      at_ += static_cast<std::size_t>(end - begin);
      if (at_ < text_.size() && text_[at_] == 'L') ++at_;
      out_.shape.push_back(n);
      if (out_.shape.size() > 32) bad("an array of more than 32 dimensions");
      if (!accept(',')) {
        if (out_.shape.size() == 1) bad("a shape of one extent ends in a comma");
        expect(')');
        break;
      }
    }
  }

  std::string_view text_;
  Array& out_;
  std::size_t at_ = 0;
};

// An .npy of `size` bytes, fetched in order by read(to, bytes), which throws where they are not to be had.
Array parse_npy(const std::string& name, Offset size, const std::function<void(void*, std::size_t)>& read) {
  Array out{.name = name, .descr = {}, .shape = {}, .bytes = {}};
  unsigned char start[12] = {};  // magic, version, length of the header in 2 bytes, or in 4 from version 2 on
  Offset at = 10;
  if (size < at) fail(name + ": " + std::to_string(size) + " bytes are too few for an array");
  read(start, 10);
  if (std::memcmp(start, "\x93NUMPY", 6) != 0) fail(name + ": not a NumPy array: it does not begin with \\x93NUMPY");
  if (start[6] < 1 || start[6] > 3 || start[7] != 0)
    fail(name + ": version " + std::to_string(start[6]) + "." + std::to_string(start[7]) + " of the format is unknown");
  Offset length = start[8] | start[9] << 8;
  if (start[6] >= 2) {
    if (size < 12) fail(name + ": " + std::to_string(size) + " bytes are too few for an array");
    read(start + 10, 2);
    length |= static_cast<Offset>(start[10]) << 16 | static_cast<Offset>(start[11]) << 24;
    at = 12;
  }
  if (length > size - at || length > kLongestHeader)
    fail(name + ": claims a header of " + std::to_string(length) + " bytes, but " + std::to_string(size - at) +
         " are left and " + std::to_string(kLongestHeader) + " allowed");
  std::string header(static_cast<std::size_t>(length), '\0');
  read(header.data(), header.size());
  at += length;
  Header(header, out).parse();
  out.dtype = dtype_of(out.descr);
  Offset bytes = bytes_of(name, out.dtype, out.shape);
  if (bytes_of(out.dtype) == 0) return out;  // listed, not read
  if (bytes != size - at)
    fail(name + ": " + shape_text(out.shape) + " of type " + printable(out.descr) + " take " + std::to_string(bytes) +
         " bytes, but " + std::to_string(size - at) + " are stored");
  out.bytes.resize(static_cast<std::size_t>(bytes));
  if (bytes > 0) read(out.bytes.data(), out.bytes.size());
  return out;
}

using Archive = std::unique_ptr<zip_t, decltype(&zip_discard)>;
using Entry = std::unique_ptr<zip_file_t, decltype(&zip_fclose)>;

Archive open_archive(std::string_view bytes, const std::string& file) {
  if (bytes.empty()) fail(file + ": not a readable .npz: the file is empty");  // to libzip, an archive of nothing
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* source = zip_source_buffer_create(bytes.data(), bytes.size(), 0, &error);
  Archive out(source ? zip_open_from_source(source, ZIP_RDONLY, &error) : nullptr, &zip_discard);
  if (!out) {
    if (source) zip_source_free(source);
    std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    fail(file + ": not a readable .npz: " + text);
  }
  zip_error_fini(&error);
  return out;
}

}  // namespace

const Array& Npz::operator[](const std::string& name) const {
  if (auto found = arrays.find(name); found != arrays.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, array] : arrays) names.push_back(other);
  if (names.empty()) fail(file + ": holds no array, and so none named '" + name + "'");
  unknown("array in " + file, name, names);
}

std::vector<std::string> npz_names(std::string_view bytes, const std::string& file) {
  Archive archive = open_archive(bytes, file);
  std::vector<std::string> out;
  for (zip_int64_t e = 0; e < zip_get_num_entries(archive.get(), 0); ++e) {
    const char* name = zip_get_name(archive.get(), static_cast<zip_uint64_t>(e), ZIP_FL_ENC_RAW);
    if (name == nullptr) fail(file + ": entry " + std::to_string(e) + " cannot be read");
    if (std::string_view(name).ends_with(".npy")) out.emplace_back(name, std::strlen(name) - 4);
  }
  return out;
}

Npz parse_npz(std::string_view bytes, const std::string& file) {
  const auto file_size = static_cast<Offset>(bytes.size());
  Archive archive = open_archive(bytes, file);
  Npz out{.file = file, .arrays = {}};
  Offset packed = 0, unpacked = 0;
  for (zip_int64_t e = 0; e < zip_get_num_entries(archive.get(), 0); ++e) {
    zip_stat_t stat;
    zip_stat_init(&stat);
    constexpr zip_uint64_t needed = ZIP_STAT_NAME | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD;
    if (zip_stat_index(archive.get(), static_cast<zip_uint64_t>(e), ZIP_FL_ENC_RAW, &stat) != 0 ||
        (stat.valid & needed) != needed)
      fail(file + ": entry " + std::to_string(e) + " cannot be read: " + zip_strerror(archive.get()));
    std::string name = stat.name;
    std::string place = file + ": " + printable(name);
    if (!name.ends_with(".npy")) continue;
    name.resize(name.size() - 4);
    if (out.contains(name)) fail(place + ": the name is there twice");
    if (stat.comp_method != ZIP_CM_STORE && stat.comp_method != ZIP_CM_DEFLATE)
      fail(place + ": packed by method " + std::to_string(stat.comp_method) + "; stored and deflated entries are read");
    if (stat.comp_size > static_cast<zip_uint64_t>(file_size - packed))
      fail(place + ": claims " + std::to_string(stat.comp_size) + " packed bytes of a file of " +
           std::to_string(file_size));
    packed += static_cast<Offset>(stat.comp_size);
    if (stat.size > static_cast<zip_uint64_t>(kGrowth * static_cast<Offset>(stat.comp_size) + kFree))
      fail(place + ": claims to unpack " + std::to_string(stat.comp_size) + " bytes into " + std::to_string(stat.size));
    const auto size = static_cast<Offset>(stat.size);
    unpacked += size;
    if (unpacked > kGrowth * file_size + kFreeTotal)
      fail(file + ": claims to unpack " + std::to_string(file_size) + " bytes into more than " +
           std::to_string(unpacked - 1));

    Entry entry(zip_fopen_index(archive.get(), static_cast<zip_uint64_t>(e), 0), &zip_fclose);
    if (!entry) fail(place + ": cannot be opened: " + zip_strerror(archive.get()));
    Offset at = 0;
    auto read = [&](void* to, std::size_t bytes) {
      for (std::size_t done = 0; done < bytes;) {
        zip_int64_t n = zip_fread(entry.get(), static_cast<char*>(to) + done, bytes - done);
        if (n < 0) fail(place + ": cannot be unpacked: " + zip_file_strerror(entry.get()));
        if (n == 0) fail(place + ": ends after " + std::to_string(at) + " of " + std::to_string(size) + " bytes");
        done += static_cast<std::size_t>(n);
        at += n;
      }
    };
    Array array = parse_npy(place, size, read);
    if (at == size) {  // read whole: the end must be there, which is also where the checksum is compared
      char more;
      zip_int64_t n = zip_fread(entry.get(), &more, 1);
      if (n < 0) fail(place + ": is damaged: " + zip_file_strerror(entry.get()));
      if (n > 0) fail(place + ": goes on after its " + std::to_string(size) + " bytes");
    }
    out.arrays.emplace(std::move(name), std::move(array));
  }
  return out;
}

Npz read_npz(const fs::path& path) { return parse_npz(read_file(path), path.string()); }

Array parse_npy(std::string_view bytes, const std::string& file) {
  std::size_t at = 0;
  return parse_npy(file, static_cast<Offset>(bytes.size()), [&](void* to, std::size_t n) {
    if (n > 0) std::memcpy(to, bytes.data() + at, n);  // it never asks for more than there is
    at += n;
  });
}

Array read_npy(const fs::path& path) { return parse_npy(read_file(path), path.string()); }

template <class T>
std::string to_npy(const std::vector<Offset>& shape, std::span<const T> elements) {
  const char* descr = std::is_same_v<T, float>          ? "<f4"
                      : std::is_same_v<T, double>       ? "<f8"
                      : std::is_same_v<T, std::int32_t> ? "<i4"
                      : std::is_same_v<T, std::int64_t> ? "<i8"
                                                        : "|u1";
  Offset size = 1;
  std::string extents;
  for (Offset n : shape) {
    size *= n;
    extents += std::to_string(n) + ", ";
  }
  if (size != static_cast<Offset>(elements.size()))
    fail(std::to_string(elements.size()) + " elements cannot be written as " + shape_text(shape));
  if (shape.size() > 1) extents.resize(extents.size() - 2);
  if (shape.size() == 1) extents.pop_back();
  std::string header = std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (" + extents + "), }";
  header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";  // the elements begin at a multiple of 64
  std::string out("\x93NUMPY\x01\0", 8);
  out.reserve(10 + header.size() + elements.size_bytes());
  out += static_cast<char>(header.size() & 255);
  out += static_cast<char>(header.size() >> 8);
  out += header;
  return out.append(reinterpret_cast<const char*>(elements.data()), elements.size_bytes());
}

template std::string to_npy(const std::vector<Offset>&, std::span<const float>);
template std::string to_npy(const std::vector<Offset>&, std::span<const double>);
template std::string to_npy(const std::vector<Offset>&, std::span<const std::int32_t>);
template std::string to_npy(const std::vector<Offset>&, std::span<const std::int64_t>);
template std::string to_npy(const std::vector<Offset>&, std::span<const std::uint8_t>);

std::string to_npz(const std::map<std::string, std::string>& arrays) {
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* target = zip_source_buffer_create(nullptr, 0, 0, &error);
  zip_t* archive = target ? zip_open_from_source(target, ZIP_TRUNCATE, &error) : nullptr;
  if (archive == nullptr) fail(std::string("an archive cannot be made: ") + zip_error_strerror(&error));
  zip_source_keep(target);
  for (const auto& [name, bytes] : arrays) {
    zip_source_t* source = zip_source_buffer(archive, bytes.data(), bytes.size(), 0);
    const zip_int64_t at = source ? zip_file_add(archive, (name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8) : -1;
    if (at < 0) fail("an archive cannot be made: " + std::string(zip_strerror(archive)));
    zip_file_set_mtime(archive, static_cast<zip_uint64_t>(at), 315532800, 0);  // 1980: the same bytes at any time
  }
  if (zip_close(archive) != 0) fail("an archive cannot be made: " + std::string(zip_strerror(archive)));
  zip_stat_t info;
  std::string out;
  if (zip_source_stat(target, &info) == 0 && zip_source_open(target) == 0) {
    out.resize(info.size);
    zip_source_read(target, out.data(), info.size);
    zip_source_close(target);
  }
  zip_source_free(target);
  return out;
}

}  // namespace heed
