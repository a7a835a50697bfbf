#include "datasets/download.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>
#include <utility>

#include "graph/error.h"
#include "graph/files.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : file_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (file_ >= 0) close(file_);
  }
  operator int() const { return file_; }

 private:
  int file_;
};

[[noreturn]] void cannot_write(const fs::path& path, int error) {
  fail("cannot write " + path.string() + ": " + std::strerror(error));
}

std::string sha256_of(int file, const fs::path& path) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) fail("SHA-256 is not to be had");
  std::vector<char> buffer(1 << 16);
  for (off_t at = 0;;) {
    const ssize_t n = pread(file, buffer.data(), buffer.size(), at);
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path.string() + ": " + std::strerror(errno));
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(n));
    at += n;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned length = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &length);
  std::string out;
  for (unsigned i = 0; i < length; ++i)
    for (int half : {digest[i] >> 4, digest[i] & 15}) out += "0123456789abcdef"[half];
  return out;
}

// One file on its way: a part file, and requests until it is whole.
class Transfer {
 public:
  Transfer(CURL* curl, const RemoteFile& file, const fs::path& folder, const DownloadOptions& options,
           std::function<void(std::uint64_t)> progress)
      : curl_(curl),
        file_(file),
        target_(folder / file.name),
        part_(target_.string() + ".part"),
        options_(options),
        progress_(std::move(progress)),
        out_(part_, O_RDWR | O_CREAT) {
    if (out_ < 0) cannot_write(part_, errno);
    struct stat info {};
    if (fstat(out_, &info) != 0) cannot_write(part_, errno);
    at_ = static_cast<std::uint64_t>(info.st_size);
    if (at_ > file_.bytes) restart();
  }

  void run() {
    auto pause = options_.pause;
    for (int attempt = 1; at_ < file_.bytes || !right(); ++attempt) {
      if (attempt > 1) {
        const auto asked = std::chrono::seconds(std::min<curl_off_t>(60, asked_pause()));  // by the server
        std::this_thread::sleep_for(std::max<std::chrono::milliseconds>(pause, asked));
        pause *= 2;
      }
      if (!request() && attempt >= options_.attempts) give_up(problem_);
    }
    if (const int error = move_into_place(out_, part_, target_.string()); error != 0) cannot_write(target_, error);
  }

 private:
  [[noreturn]] void give_up(const std::string& why) const {
    if (at_ == 0) unlink(part_.c_str());
    fail("cannot download " + file_.url + ": " + why);
  }

  void restart() {
    if (ftruncate(out_, 0) != 0) cannot_write(part_, errno);
    at_ = 0, resumed_ = false, tag_.clear();
  }

  // A whole file with another hash: where pieces of several answers were joined they may not belong together, so it is
  // fetched once more in one piece.
  bool right() {
    const std::string found = sha256_of(out_, part_);
    if (found == file_.sha256) return true;
    const bool joined = resumed_ || earlier_;
    restart();
    earlier_ = false;
    if (joined) return false;
    give_up("its SHA-256 is " + found + ", not " + file_.sha256);
  }

  curl_off_t asked_pause() const {
    curl_off_t seconds = 0;
    curl_easy_getinfo(curl_, CURLINFO_RETRY_AFTER, &seconds);
    return seconds;
  }

  std::string header(const char* name) const {
    curl_header* found = nullptr;
    return curl_easy_header(curl_, name, 0, CURLH_HEADER, -1, &found) == CURLHE_OK ? found->value : "";
  }

  long status() const {
    long out = 0;
    curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &out);
    return out;
  }

  // Asks for what is missing. False: it did not come, and problem_ says why. Throws where asking again is of no use.
  bool request() {
    std::array<char, CURL_ERROR_SIZE> text{};
    curl_easy_reset(curl_);
    const bool secure = file_.url.starts_with("https:");
    const std::string range = std::to_string(at_) + "-", condition = "If-Range: " + tag_;
    std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(
        at_ > 0 && !tag_.empty() ? curl_slist_append(nullptr, condition.c_str()) : nullptr, curl_slist_free_all);
    const auto seconds = static_cast<long>(options_.patience.count());
    curl_easy_setopt(curl_, CURLOPT_URL, file_.url.c_str());
    curl_easy_setopt(curl_, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl_, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
    curl_easy_setopt(curl_, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl_, CURLOPT_MAXREDIRS, 10L);
    curl_easy_setopt(curl_, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl_, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl_, CURLOPT_USERAGENT, "heed/" HEED_VERSION);
    curl_easy_setopt(curl_, CURLOPT_CONNECTTIMEOUT, seconds);
    curl_easy_setopt(curl_, CURLOPT_LOW_SPEED_LIMIT, 1000L);
    curl_easy_setopt(curl_, CURLOPT_LOW_SPEED_TIME, seconds);
    curl_easy_setopt(curl_, CURLOPT_ERRORBUFFER, text.data());
    curl_easy_setopt(curl_, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    curl_easy_setopt(curl_, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(curl_, CURLOPT_HTTPHEADER, headers.get());
    if (at_ > 0) curl_easy_setopt(curl_, CURLOPT_RANGE, range.c_str());

    body_ = misplaced_ = false;
    const CURLcode code = curl_easy_perform(curl_);
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
    if (std::string tag = header("ETag"); !tag.starts_with("W/")) tag_ = tag;
    if (at_ == file_.bytes) return true;  // whatever came after it

    problem_ =
        code != CURLE_OK ? std::string(text[0] != 0 ? text.data() : curl_easy_strerror(code)) : "the answer ended";
    if (misplaced_ || (code == CURLE_HTTP_RETURNED_ERROR && status() == 416 && at_ > 0)) {
      restart();  // the server does not go on where we are
      problem_ = "the server sent another part than that asked for";
      return false;
    }
    if (code == CURLE_HTTP_RETURNED_ERROR) {
      problem_ = "HTTP status " + std::to_string(status());
      if (status() < 500 && status() != 408 && status() != 429) give_up(problem_);
      return false;
    }
    for (CURLcode hopeless :
         {CURLE_URL_MALFORMAT, CURLE_UNSUPPORTED_PROTOCOL, CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY,
          CURLE_PEER_FAILED_VERIFICATION, CURLE_TOO_MANY_REDIRECTS, CURLE_SSL_CACERT_BADFILE, CURLE_OUT_OF_MEMORY})
      if (code == hopeless) give_up(problem_);
    problem_ = "cut off at " + std::to_string(at_) + " of " + std::to_string(file_.bytes) + " bytes (" + problem_ + ")";
    return false;
  }

  // Where an answer begins is known before its first byte is taken.
  void begin() {
    curl_off_t length = -1;
    curl_easy_getinfo(curl_, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (status() == 206) {
      const std::string place = header("Content-Range");  // bytes 5-9/10
      std::uint64_t start = 0;
      const char* end = place.data() + place.size();
      const bool read = place.starts_with("bytes ") && std::from_chars(place.data() + 6, end, start).ec == std::errc{};
      if (!read || start != at_) {
        misplaced_ = true;
        return;
      }
      resumed_ = true;
    } else if (status() == 200) {
      restart();
      earlier_ = false;
    } else {
      give_up("HTTP status " + std::to_string(status()));
    }
    if (length >= 0 && at_ + static_cast<std::uint64_t>(length) != file_.bytes)
      give_up("it has " + std::to_string(at_ + static_cast<std::uint64_t>(length)) + " bytes, not " +
              std::to_string(file_.bytes));
    const std::uint64_t missing = file_.bytes - at_;
    std::error_code error;
    const auto space = fs::space(part_, error);
    if (!error && space.available < missing)
      give_up("no space: " + std::to_string(missing) + " bytes are missing, and " + target_.parent_path().string() +
              " has room for " + std::to_string(space.available));
  }

  void take(const char* data, std::size_t n) {
    if (n > file_.bytes - at_) give_up("it has more than " + std::to_string(file_.bytes) + " bytes");
    while (n > 0) {
      const ssize_t done = pwrite(out_, data, n, static_cast<off_t>(at_));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) give_up("cannot write " + part_ + ": " + std::strerror(done < 0 ? errno : EIO));
      at_ += static_cast<std::uint64_t>(done), data += done, n -= static_cast<std::size_t>(done);
    }
    if (progress_) progress_(at_);
  }

  static std::size_t on_body(char* data, std::size_t, std::size_t n, void* self) {
    auto* t = static_cast<Transfer*>(self);
    try {  // libcurl is C
      if (!std::exchange(t->body_, true)) t->begin();
      if (t->misplaced_) return CURL_WRITEFUNC_ERROR;
      t->take(data, n);
      return n;
    } catch (...) {
      t->thrown_ = std::current_exception();
      return CURL_WRITEFUNC_ERROR;
    }
  }

  CURL* const curl_;
  const RemoteFile& file_;
  const fs::path target_;
  const std::string part_;
  const DownloadOptions& options_;
  const std::function<void(std::uint64_t)> progress_;
  const Descriptor out_;
  std::uint64_t at_ = 0;    // bytes that are there
  std::string tag_;         // what the server calls this content
  bool earlier_ = true;     // the part may be of an earlier process
  bool resumed_ = false;    // the part is made of several answers
  bool body_ = false;       // the answer has begun
  bool misplaced_ = false;  // the answer is not what was asked for
  std::string problem_;
  std::exception_ptr thrown_;
};

// Held until the end of the scope, or of the process.
class Lock {
 public:
  Lock(const fs::path& folder, const DownloadOptions& options) : file_(folder / ".lock", O_RDWR | O_CREAT) {
    if (file_ < 0) cannot_write(folder / ".lock", errno);
    if (flock(file_, LOCK_EX | LOCK_NB) == 0) return;
    if (options.progress) options.progress(options.what + ": waiting for another process", 0, 0);
    while (flock(file_, LOCK_EX) != 0)
      if (errno != EINTR) cannot_write(folder / ".lock", errno);
  }

 private:
  Descriptor file_;
};

}  // namespace

std::string sha256_of(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  if (file < 0) fail(path.string() + ": " + std::strerror(errno));
  return sha256_of(file, path);
}

void download(std::span<const RemoteFile> files, const fs::path& folder, const DownloadOptions& options) {
  auto there = [&](const RemoteFile& file) {
    std::error_code none;
    return fs::exists(folder / file.name, none);
  };
  if (std::all_of(files.begin(), files.end(), there)) return;  // needs no lock, and no right to write
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (started != CURLE_OK) fail(std::string("libcurl does not start: ") + curl_easy_strerror(started));
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) cannot_write(folder, error.value());
  const Lock lock(folder, options);
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(), curl_easy_cleanup);
  if (!curl) fail("libcurl does not start");

  std::uint64_t whole = 0, done = 0;
  for (const RemoteFile& file : files) whole += file.bytes;
  for (const RemoteFile& file : files) {
    if (!there(file))
      Transfer(curl.get(), file, folder, options, [&](std::uint64_t bytes) {
        if (options.progress) options.progress(options.what, done + bytes, whole);
      }).run();
    done += file.bytes;
  }
}

}  // namespace heed
