// A disk that fails, for LD_PRELOAD: HEED_FAULT=write:3 lets the third write to a regular file end in "no space left",
// and all after it; fsync:3 and rename:3 fail alike with "input/output error".
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace {

bool fails(const char* call) {
  const char* fault = std::getenv("HEED_FAULT");
  const std::size_t length = std::strlen(call);
  if (fault == nullptr || std::strncmp(fault, call, length) != 0 || fault[length] != ':') return false;
  static int count = 0;
  return ++count >= std::atoi(fault + length + 1);
}

bool regular(int file) {
  struct stat info {};
  return fstat(file, &info) == 0 && S_ISREG(info.st_mode);
}

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t write(int file, const void* bytes, size_t count) {
  if (regular(file) && fails("write")) return errno = ENOSPC, -1;
  return next<ssize_t(int, const void*, size_t)>("write")(file, bytes, count);
}
ssize_t writev(int file, const struct iovec* parts, int count) {
  if (regular(file) && fails("write")) return errno = ENOSPC, -1;
  return next<ssize_t(int, const struct iovec*, int)>("writev")(file, parts, count);
}
int fsync(int file) {
  if (fails("fsync")) return errno = EIO, -1;
  return next<int(int)>("fsync")(file);
}
int rename(const char* from, const char* to) noexcept {
  if (fails("rename")) return errno = EIO, -1;
  return next<int(const char*, const char*)>("rename")(from, to);
}
}
