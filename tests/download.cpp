// Downloads from a small server in this process, which cuts, stalls, lies and redirects as it is told.
#include "datasets/download.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "datasets/dataset.h"
#include "datasets/homes.h"
#include "graph/error.h"
#include "tests/scratch.h"

using namespace heed;
using namespace heed::test;
namespace fs = std::filesystem;

namespace {

struct Request {
  std::string path;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string header(const std::string& name) const { return headers.contains(name) ? headers.at(name) : ""; }
};

// Answers every request by `answer`, which returns what goes over the wire before the connection is closed.
class Server {
 public:
  using Answer = std::function<std::string(const Request&, int number)>;
  Answer answer;
  std::atomic<int> delay{0};  // ms, before each answer
  std::atomic<int> stall{0};  // ms, after each answer, with the connection open

  explicit Server(Answer how = {}, SSL_CTX* tls = nullptr) : answer(std::move(how)), tls_(tls) {
    setenv("no_proxy", "127.0.0.1", 1);
    socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    REQUIRE(bind(socket_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(listen(socket_, 16) == 0);
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Server() {
    shutdown(socket_, SHUT_RDWR);
    thread_.join();
    close(socket_);
  }

  std::string url(const std::string& path = "") const {
    return (tls_ ? "https://127.0.0.1:" : "http://127.0.0.1:") + std::to_string(port_) + "/" + path;
  }
  std::vector<Request> requests() {
    std::lock_guard guard(mutex_);
    return requests_;
  }

 private:
  void run() {
    sigset_t pipe;  // OpenSSL writes to connections that the client has closed
    sigemptyset(&pipe), sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
    for (int client; (client = accept(socket_, nullptr, nullptr)) >= 0; close(client)) {
      if (tls_) {
        SSL* ssl = SSL_new(tls_);
        SSL_set_fd(ssl, client);
        SSL_accept(ssl);
        SSL_free(ssl);
        continue;
      }
      std::string text;
      std::array<char, 4096> buffer;
      while (text.find("\r\n\r\n") == std::string::npos) {
        const ssize_t n = recv(client, buffer.data(), buffer.size(), 0);
        if (n <= 0) break;
        text.append(buffer.data(), static_cast<std::size_t>(n));
      }
      Request request;
      std::istringstream lines(text);
      std::string line;
      lines >> line >> request.path;
      std::getline(lines, line);
      while (std::getline(lines, line) && line.size() > 1) {
        const auto colon = line.find(':');
        std::string name = line.substr(0, colon);
        for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        request.headers[name] = line.substr(colon + 2, line.size() - colon - 3);
      }
      int number;
      {
        std::lock_guard guard(mutex_);
        requests_.push_back(request);
        number = static_cast<int>(requests_.size());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(delay.load()));
      const std::string out = answer(request, number);
      for (std::size_t at = 0; at < out.size();) {
        const ssize_t n = send(client, out.data() + at, out.size() - at, MSG_NOSIGNAL);
        if (n <= 0) break;
        at += static_cast<std::size_t>(n);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(stall.load()));
    }
  }

  int socket_;
  int port_ = 0;
  SSL_CTX* tls_;
  std::mutex mutex_;
  std::vector<Request> requests_;
  std::thread thread_;
};

std::string reply(const std::string& status, const std::string& headers, const std::string& body) {
  return "HTTP/1.1 " + status + "\r\nConnection: close\r\n" + headers + "\r\n" + body;
}

// As a good server does it: parts where they are asked for, unless the content has another tag by now.
std::string serve(const Request& request, const std::string& content, const std::string& tag = "\"one\"") {
  const std::string range = request.header("range"), condition = request.header("if-range");
  const std::string etag = "ETag: " + tag + "\r\n";
  if (range.empty() || (!condition.empty() && condition != tag))
    return reply("200 OK", etag + "Content-Length: " + std::to_string(content.size()) + "\r\n", content);
  const auto start = std::stoul(range.substr(6));  // bytes=N-
  if (start >= content.size()) return reply("416 Range Not Satisfiable", "Content-Length: 0\r\n", "");
  return reply("206 Partial Content",
               etag + "Content-Range: bytes " + std::to_string(start) + "-" + std::to_string(content.size() - 1) + "/" +
                   std::to_string(content.size()) + "\r\nContent-Length: " + std::to_string(content.size() - start) +
                   "\r\n",
               content.substr(start));
}

// The same answer, cut off after so many bytes of its body.
std::string cut(const std::string& answer, std::size_t bytes) {
  return answer.substr(0, answer.find("\r\n\r\n") + 4 + bytes);
}

std::string content_of(char letter) {
  std::string out;
  for (int i = 0; i < 5000; ++i) out += static_cast<char>(letter + i % 7);
  return out;
}

const std::string kContent = content_of('a');
const std::string kHash = "b82b2abbd36f52f21b1b73952cf31c3c2e76758797462b5e6374b09b53b1c34a";

// A folder, a server, and one file that ought to get from the one to the other.
struct Case {
  Scratch folder;
  Server server;
  RemoteFile file{"x", server.url("home/x"), kContent.size(), kHash};
  DownloadOptions options{.attempts = 3, .pause = std::chrono::milliseconds(1), .patience = std::chrono::seconds(5)};

  explicit Case(Server::Answer answer) : server(std::move(answer)) {}
  void get() { download({&file, 1}, folder.path, options); }
  std::string message() {
    try {
      get();
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find('\n') == std::string::npos);
      return error.what();
    }
    return "downloaded";
  }
  bool arrived() const { return contents(folder.path / "x") == kContent && !fs::exists(folder.path / "x.part"); }
};

struct Environment {  // one variable, as it was before at the end
  std::string name, before;
  bool was;
  Environment(const std::string& variable, const std::string& value)
      : name(variable),
        before(std::getenv(name.c_str()) ? std::getenv(name.c_str()) : ""),
        was(std::getenv(name.c_str()) != nullptr) {
    setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() { was ? setenv(name.c_str(), before.c_str(), 1) : unsetenv(name.c_str()); }
};

// Runs in a process of its own, where it may end.
template <class F>
pid_t apart(F f) {
  const pid_t child = fork();
  if (child == 0) _exit(f());
  return child;
}
int end_of(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_SUITE_BEGIN("datasets");

TEST_CASE("SHA-256 of known texts") {
  Scratch folder;
  for (const auto& [text, hash] : std::vector<std::pair<std::string, std::string>>{
           {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
           {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
           {std::string(1'000'000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}}) {
    std::ofstream(folder.path / "text", std::ios::binary) << text;
    CHECK(sha256_of(folder.path / "text") == hash);
  }
  CHECK_THROWS_WITH_AS(sha256_of(folder.path / "none"), doctest::Contains("No such file"), Error);
}

TEST_CASE("a download brings the file, says how far it is, and is not done twice") {
  Case c([](const Request& r, int) { return serve(r, kContent); });
  std::vector<std::uint64_t> seen;
  c.options.what = "x of home";
  c.options.progress = [&](const std::string& what, std::uint64_t bytes, std::uint64_t of) {
    CHECK(what == "x of home");
    CHECK(of == kContent.size());
    if (!seen.empty()) CHECK(bytes >= seen.back());
    seen.push_back(bytes);
  };
  c.get();
  CHECK(c.arrived());
  REQUIRE(!seen.empty());
  CHECK(seen.back() == kContent.size());
  CHECK(c.folder.list() == std::vector<std::string>{".lock", "x"});
  c.get();
  REQUIRE(c.server.requests().size() == 1);
  CHECK(c.server.requests()[0].path == "/home/x");
  CHECK(c.server.requests()[0].header("range").empty());
}

TEST_CASE("another content is refused, with both hashes, and nothing of it stays") {
  const std::string other = content_of('b');
  Case c([&](const Request& r, int) { return serve(r, other); });
  const std::string why = c.message();
  CHECK(has(why, "cannot download " + c.file.url +
                     ": its SHA-256 is ea72a9fdc704388b08e763e6d5fe7b3a39aa45143c7051cde6ff38b163d113b8"));
  CHECK(has(why, "not " + kHash));
  CHECK(c.folder.list() == std::vector<std::string>{".lock"});
  CHECK(c.server.requests().size() == 1);
}

TEST_CASE("what was cut off goes on, in the same call and in a later one") {
  Case c([](const Request& r, int number) { return number <= 2 ? cut(serve(r, kContent), 1000) : serve(r, kContent); });
  c.get();
  CHECK(c.arrived());
  auto asked = c.server.requests();
  REQUIRE(asked.size() == 3);
  CHECK(asked[1].header("range") == "bytes=1000-");
  CHECK(asked[1].header("if-range") == "\"one\"");
  CHECK(asked[2].header("range") == "bytes=2000-");

  Case later(
      [](const Request& r, int number) { return number == 1 ? cut(serve(r, kContent), 1234) : serve(r, kContent); });
  later.options.attempts = 1;
  CHECK(has(later.message(), later.file.url + ": cut off at 1234 of 5000 bytes ("));
  CHECK(later.folder.list() == std::vector<std::string>{".lock", "x.part"});
  later.get();
  CHECK(later.arrived());
  CHECK(later.server.requests()[1].header("range") == "bytes=1234-");
}

TEST_CASE("a server without ranges, or with wrong ones, starts again") {
  const std::string plain = reply("200 OK", "Content-Length: 5000\r\n", kContent);
  Case without([&](const Request&, int number) { return number == 1 ? cut(plain, 700) : plain; });
  without.get();
  CHECK(without.arrived());
  CHECK(without.server.requests().size() == 2);

  const std::string wrong = reply("206 Partial Content", "Content-Range: bytes 3-4999/5000\r\n", kContent.substr(3));
  Case elsewhere([&](const Request& r, int number) {
    if (number == 1) return cut(plain, 700);
    return r.header("range").empty() ? plain : wrong;
  });
  elsewhere.get();
  CHECK(elsewhere.arrived());
  CHECK(elsewhere.server.requests().size() == 3);

  Case beyond([](const Request& r, int) {  // its file ends before the place that is asked for
    return r.header("range").empty() ? serve(r, kContent) : reply("416 Range Not Satisfiable", "", "");
  });
  std::ofstream(beyond.folder.path / "x.part") << std::string(4999, 'z');
  beyond.get();
  CHECK(beyond.arrived());
}

TEST_CASE("pieces of different contents are never joined") {
  // By the tag: the server has another content by the second request.
  Case tagged([](const Request& r, int number) {
    return number == 1 ? cut(serve(r, content_of('b'), "\"old\""), 1000) : serve(r, kContent, "\"new\"");
  });
  tagged.get();
  CHECK(tagged.arrived());
  CHECK(tagged.server.requests().size() == 2);

  // By the hash: an earlier process left a piece of another content, cut, whole or too long.
  for (std::size_t left : {1000, 5000, 6000}) {
    CAPTURE(left);
    Case untagged([](const Request& r, int) { return serve(r, kContent); });
    std::ofstream(untagged.folder.path / "x.part") << std::string(left, 'z');
    untagged.get();
    CHECK(untagged.arrived());
  }
  // And a whole piece of the right one needs no request.
  Case whole([](const Request& r, int) { return serve(r, kContent); });
  std::ofstream(whole.folder.path / "x.part") << kContent;
  whole.get();
  CHECK(whole.arrived());
  CHECK(whole.server.requests().empty());
}

TEST_CASE("what may pass is tried again, what will not is told at once") {
  Case missing([](const Request&, int) { return reply("404 Not Found", "", "no such page"); });
  CHECK(missing.message() == "cannot download " + missing.file.url + ": HTTP status 404");
  CHECK(missing.server.requests().size() == 1);
  CHECK(missing.folder.list() == std::vector<std::string>{".lock"});

  Case broken([](const Request& r, int number) {
    return number == 1 ? reply("500 Internal Server Error", "", "") : serve(r, kContent);
  });
  broken.get();
  CHECK(broken.arrived());
  CHECK(broken.server.requests().size() == 2);

  Case down([](const Request&, int) { return reply("503 Service Unavailable", "", ""); });
  CHECK(down.message() == "cannot download " + down.file.url + ": HTTP status 503");
  CHECK(down.server.requests().size() == 3);

  Case odd([](const Request&, int) { return reply("203 Otherwise", "", "text"); });
  CHECK(has(odd.message(), "HTTP status 203"));

  Case away([](const Request&, int) { return ""; });
  away.file.url = "http://127.0.0.1:1/x";
  CHECK(has(away.message(), "cannot download http://127.0.0.1:1/x: cut off at 0 of 5000 bytes (Failed to connect"));
  away.file.url = "file:///etc/hostname";
  CHECK(has(away.message(), "cannot download file:///etc/hostname: Protocol \"file\""));
}

TEST_CASE("a file of another size is refused before it fills the disk") {
  Case longer([](const Request& r, int) { return serve(r, kContent + "more"); });
  CHECK(has(longer.message(), "it has 5004 bytes, not 5000"));
  Case shorter([](const Request& r, int) { return serve(r, "short"); });
  CHECK(has(shorter.message(), "it has 5 bytes, not 5000"));
  Case unsaid([](const Request&, int) { return reply("200 OK", "", kContent + "more"); });
  CHECK(has(unsaid.message(), "it has more than 5000 bytes"));
  for (Case* c : {&longer, &shorter, &unsaid}) CHECK_FALSE(fs::exists(c->folder.path / "x"));
}

TEST_CASE("a server that falls asleep is left") {
  Case c([](const Request& r, int) { return cut(serve(r, kContent), 100); });
  c.server.stall = 3000;
  c.options.attempts = 1;
  c.options.patience = std::chrono::seconds(1);
  const auto begin = std::chrono::steady_clock::now();
  CHECK(has(c.message(), "cut off at 100 of 5000 bytes (Operation too slow"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(2900));
}

TEST_CASE("redirects lead to the file, but not in circles and not out of the web") {
  auto to = [](const std::string& place) { return reply("302 Found", "Location: " + place + "\r\n", "moved"); };
  Case c([&](const Request& r, int) { return r.path == "/home/x" ? to("/elsewhere") : serve(r, kContent); });
  c.get();
  CHECK(c.arrived());
  CHECK(c.server.requests()[1].path == "/elsewhere");
  Case circle([&](const Request&, int) { return to("/home/x"); });
  CHECK(has(circle.message(), "redirects"));
  for (const char* place : {"file:///etc/hostname", "ftp://127.0.0.1/x"}) {
    Case out([&](const Request&, int) { return to(place); });
    CHECK(has(out.message(), "Protocol \""));
    CHECK(out.server.requests().size() == 1);
  }
}

TEST_CASE("a certificate that nobody vouches for is refused") {
  EVP_PKEY* key = EVP_RSA_gen(2048);
  X509* certificate = X509_new();
  X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_sign(certificate, key, EVP_sha256());
  SSL_CTX* tls = SSL_CTX_new(TLS_server_method());
  REQUIRE(SSL_CTX_use_certificate(tls, certificate) == 1);
  REQUIRE(SSL_CTX_use_PrivateKey(tls, key) == 1);
  {
    Server server({}, tls);
    Case c([](const Request&, int) { return ""; });
    c.file.url = server.url("x");
    const std::string why = c.message();
    CHECK_MESSAGE(has(why, "certificate"), why);
  }
  SSL_CTX_free(tls);
  X509_free(certificate);
  EVP_PKEY_free(key);
}

TEST_CASE("two processes at once: one downloads, the other waits and finds the file") {
  Case c([](const Request& r, int) { return serve(r, kContent); });
  c.server.delay = 300;
  auto child = [&] {
    return apart([&] {
      int waited = 0;
      c.options.progress = [&](const std::string& what, std::uint64_t, std::uint64_t) {
        if (has(what, "waiting for another process")) waited = 1;
      };
      return c.message() == "downloaded" && c.arrived() ? waited : 9;
    });
  };
  const pid_t first = child(), second = child();
  CHECK(end_of(first) + end_of(second) == 1);  // one of them waited
  CHECK(c.server.requests().size() == 1);
}

TEST_CASE("a place that takes no file is named") {
  Case c([](const Request& r, int) { return serve(r, kContent); });
  std::ofstream(c.folder.path / "file") << "in the way";
  auto message = [&](const fs::path& folder) {
    try {
      download({&c.file, 1}, folder, c.options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("downloaded");
  };
  const fs::path within = c.folder.path / "file" / "cora";
  CHECK(message(within) == "cannot write " + within.string() + ": Not a directory");
  CHECK(c.server.requests().empty());
  const int end = end_of(apart([&] {  // a disk that is full, or nearly so
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4000, 4000};
    setrlimit(RLIMIT_FSIZE, &limit);
    return has(message(c.folder.path), c.file.url + ": cannot write " + (c.folder.path / "x.part").string()) ? 0 : 1;
  }));
  CHECK(end == 0);
  CHECK_FALSE(fs::exists(c.folder.path / "x"));
}

TEST_CASE("load downloads where it may, from the mirror that is set") {
  const fs::path data = public_data();
  Scratch cache;
  Environment place("XDG_CACHE_HOME", cache.path.string()), none("HEED_DATA", (cache.path / "none").string());
  Server server([&](const Request& r, int) {
    const std::string content = data.empty() ? "" : contents(data / r.path.substr(1));
    return content.empty() ? reply("404 Not Found", "", "") : serve(r, content);
  });
  Environment mirror("HEED_MIRROR", server.url());
  auto message = [](const LoadOptions& options) {
    try {
      return std::to_string(load("cora", options).nodes()) + " nodes";
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  CHECK(has(message({}), "dataset 'cora' is missing"));
  {
    Environment offline("HEED_OFFLINE", "1");
    CHECK(has(message({.download = true}), "dataset 'cora' is missing"));
  }
  CHECK(server.requests().empty());
  const std::string loaded = message({.download = true});
  REQUIRE(!server.requests().empty());
  CHECK(server.requests()[0].path == "/cora/ind.cora.x");
  if (data.empty()) {
    MESSAGE("skipped: no public data in $HEED_DATA");
    CHECK(has(loaded,
              "cannot download " + server.url("cora/ind.cora.x") + ": HTTP status 404; where the files are here"));
    return;
  }
  CHECK(loaded == "2708 nodes");
  CHECK(server.requests().size() == 8);
  CHECK(message({}) == "2708 nodes");  // from the cache
  fs::remove(cache.path / "heed" / "cora" / "ind.cora.graph");
  CHECK(message({.download = true}) == "2708 nodes");  // a cache that holds but a part
  CHECK(server.requests().size() == 9);
  CHECK(message({.data = data, .download = true}) == "2708 nodes");
}

TEST_CASE("every home is complete") {
  Environment mirror("HEED_MIRROR", "");
  for (const char* name : {"cora", "citeseer", "pubmed", "amazon_photo", "coauthor_physics", "minesweeper", "actor",
                           "chameleon_filtered", "texas"}) {
    CAPTURE(name);
    const auto files = remote_files(name);
    CHECK(!files.empty());
    for (const RemoteFile& file : files) {
      CHECK(file.url.starts_with("https://"));
      CHECK(file.url.ends_with("/" + file.name));
      CHECK(file.bytes > 0);
      CHECK(file.sha256.size() == 64);
      CHECK(file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos);
    }
  }
  CHECK(remote_files("karate").empty());
}

TEST_SUITE_END();
