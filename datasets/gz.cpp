#include "datasets/gz.h"

#include <zlib.h>

#include <algorithm>

namespace heed {
namespace {

constexpr int kGzip = 15 + 16;  // zlib's largest window, with gzip's header and checksum

void feed(z_stream& stream, std::string_view& bytes) {  // zlib counts input in 32 bits
  const std::size_t n = std::min<std::size_t>(bytes.size(), std::size_t{1} << 30);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(n);
  bytes.remove_prefix(n);
}

}  // namespace

std::string gunzip(std::string_view packed, const std::string& name) {
  const auto size = static_cast<Offset>(packed.size());
  z_stream stream{};
  if (inflateInit2(&stream, kGzip) != Z_OK) fail("out of memory: " + name);
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } end{&stream};
  std::string out;
  bool ended = false;  // a member has
  for (std::string_view left = packed; !ended || !left.empty() || stream.avail_in > 0;) {
    if (ended) {  // another member follows
      inflateReset(&stream);
      ended = false;
    }
    if (stream.avail_in == 0) {
      if (left.empty())
        fail(name + ": ends before its packed data does, after " + std::to_string(out.size()) + " unpacked bytes");
      feed(stream, left);
    }
    char block[1 << 16];
    stream.next_out = reinterpret_cast<Bytef*>(block);
    stream.avail_out = sizeof block;
    const int code = inflate(&stream, Z_NO_FLUSH);
    out.append(block, sizeof block - stream.avail_out);
    if (static_cast<Offset>(out.size()) > kGrowth * size + kFree)
      fail(name + ": unpacks " + std::to_string(size) + " bytes into more than " +
           std::to_string(kGrowth * size + kFree));
    if (code == Z_STREAM_END)
      ended = true;
    else if (code != Z_OK && code != Z_BUF_ERROR)
      fail(name + ": is not a whole .gz: " + (stream.msg ? stream.msg : "damaged") + ", after " +
           std::to_string(out.size()) + " unpacked bytes");
  }
  return out;
}

std::string gzip(std::string_view bytes) {
  z_stream stream{};
  if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kGzip, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    fail("out of memory");
  std::string out;
  int code = Z_OK;
  do {
    if (stream.avail_in == 0 && !bytes.empty()) feed(stream, bytes);
    char block[1 << 16];
    stream.next_out = reinterpret_cast<Bytef*>(block);
    stream.avail_out = sizeof block;
    code = deflate(&stream, bytes.empty() ? Z_FINISH : Z_NO_FLUSH);
    out.append(block, sizeof block - stream.avail_out);
  } while (code == Z_OK);
  deflateEnd(&stream);
  return out;
}

}  // namespace heed
