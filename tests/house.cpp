// The house rules, held against every source file: what may include what, where CUDA and printing may live, and that
// each file says what it is for. The checker is first tried on small samples that break one rule each.
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

using Names = std::vector<std::string>;

// A file includes its own folder and those of earlier rows. "" is the root: the umbrella header. cli and bench make one
// program and may include each other.
const std::vector<std::set<std::string>> kOrder = {{"graph"}, {"kernels"}, {"sampling", "datasets"}, {"layers"},
                                                   {"train"}, {""},        {"cli", "bench", "tests"}};

const std::set<std::string> kRoot = {
    "graph", "kernels", "sampling",       "datasets",          "layers",    "train",   "cli", "tests",
    "bench", "heed.h",  "CMakeLists.txt", "CMakePresets.json", "README.md", "LICENSE", "heed"};

std::size_t rank(const std::string& folder) {
  return static_cast<std::size_t>(
      std::find_if(kOrder.begin(), kOrder.end(), [&](const auto& row) { return row.contains(folder); }) -
      kOrder.begin());
}

std::string folder_of(const std::string& path) {
  auto slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

bool may_include(const std::string& folder, const std::string& path) {
  std::string other = folder_of(path);
  if (other.empty() && path != "heed.h") return false;
  const std::set<std::string> program = {"cli", "bench"};
  if (program.contains(folder) && program.contains(other)) return true;
  return rank(other) < kOrder.size() && (other == folder || rank(other) < rank(folder));
}

// The text without its comments and literals; lines stay where they are, and so do the paths of includes.
std::string code_of(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    auto starts = [&](const char* what) { return text.compare(i, std::string(what).size(), what) == 0; };
    auto past = [&](const std::string& what, std::size_t from) {
      auto at = text.find(what, from);
      return at == std::string::npos ? text.size() : at + what.size();
    };
    bool in_word = i > 0 && (std::isalnum(static_cast<unsigned char>(text[i - 1])) || text[i - 1] == '_');
    std::size_t end = i;
    if (starts("//")) {
      end = std::min(text.find('\n', i), text.size());
    } else if (starts("/*")) {
      end = past("*/", i + 2);
    } else if (starts("R\"") && !in_word) {
      auto open = std::min(text.find('(', i), text.size());
      end = past(")" + text.substr(i + 2, open - i - 2) + "\"", open);
    } else if (text[i] == '"' || (text[i] == '\'' && !in_word)) {
      for (end = i + 1; end < text.size() && text[end] != text[i];) end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
      if (text[i] == '"' && out.substr(out.rfind('\n') + 1) == "#include ") {
        out += text.substr(i, end - i);
        i = end;
      }
    }
    if (end == i) {
      if (i < text.size()) out += text[i++];
      continue;
    }
    for (; i < end; ++i) out += text[i] == '\n' ? '\n' : ' ';
  }
  return out;
}

// What is wrong with a file, one "path:line: what" each.
Names violations(const std::string& path, const std::string& text) {
  static const std::regex include(R"re(^\s*#\s*include\s*"([^"]+)")re");
  static const std::regex cuda(
      R"(#\s*include\s*<(cuda|cublas|cusparse|cub/|cooperative_groups)|\b__(global|device|host|shared)__\b|<<<)");
  static const std::regex print(
      R"(#\s*include\s*<(iostream|print)>|\bstd::(cout|cerr|clog|print)|\bfmt::print|\b(stdout|stderr)\b|)"
      R"(\b(printf|puts|putchar|perror)\s*\()");
  static const std::regex mark(
      "\\b(TO"
      "DO|FIX"
      "ME)\\b");  // in two halves, so that this line has none

  Names out;
  std::string folder = folder_of(path), extension = fs::path(path).extension().string();
  bool library = rank(folder) < rank(""), may_cuda = folder == "kernels";
  int number = 0;
  auto wrong = [&](const std::string& what) { out.push_back(path + ":" + std::to_string(number) + ": " + what); };

  // A .cpp may open with its own header instead, which says it for both.
  std::string own = extension == ".cpp" ? "#include \"" + path.substr(0, path.size() - 4) + ".h\"\n" : "//";
  if (text.rfind("//", 0) != 0 && text.rfind(own, 0) != 0) wrong("opens without a comment that says what it is for");
  if (extension == ".h" && text.find("#pragma once\n") == std::string::npos) wrong("has no #pragma once");
  const bool example = path.rfind("tests/examples/", 0) == 0;  // a user's file
  if (extension.rfind(".cu", 0) == 0 && !may_cuda && !example) wrong("is CUDA outside kernels");

  std::istringstream lines(text), codes(code_of(text));
  for (std::string line, code; std::getline(lines, line);) {
    std::getline(codes, code);
    ++number;
    std::smatch found;
    if (std::regex_search(code, found, include) && !may_include(folder, found[1]))
      wrong("'" + found[1].str() + "' may not be included here");
    if (!may_cuda && std::regex_search(code, cuda)) wrong("is CUDA outside kernels");
    if (library && std::regex_search(code, print)) wrong("prints; a library returns or throws");
    if (std::regex_search(line, mark)) wrong("has a mark of work left to do");
  }
  return out;
}

// What a person may keep in the root besides the house: hidden files, builds, and files of data, known by their
// endings.
bool belongs_in_root(const std::string& name, bool is_folder) {
  if (name[0] == '.' || kRoot.contains(name)) return true;
  if (is_folder) return name == "build" || name == "shared";
  static const std::set<std::string> source = {"", ".h", ".c", ".cc", ".cpp", ".cu", ".py", ".sh", ".md", ".cmake"};
  return !source.contains(fs::path(name).extension().string());
}

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_SUITE("house") {
  TEST_CASE("the checker accepts what is right") {
    CHECK(violations("graph/a.h", "// A.\n#pragma once\n#include <vector>\n#include \"graph/b.h\"\n").empty());
    CHECK(violations("sampling/a.cpp", "// A.\n#include \"kernels/b.h\"\n").empty());
    CHECK(violations("layers/a.cpp", "#include \"layers/a.h\"\n").empty());
    CHECK(violations("datasets/a.cpp", "// A.\n#include \"graph/b.h\"\n").empty());
    CHECK(violations("cli/a.cpp", "// A.\n#include \"heed.h\"\nint x = printf(\"x\");\n").empty());
    CHECK(violations("heed.h", "// A.\n#pragma once\n#include \"train/train.h\"\n").empty());
    CHECK(violations("kernels/a.cu", "// A.\n#include <cuda_runtime.h>\n__global__ void f();\n").empty());
    CHECK(
        violations("graph/a.cpp", "// A __global__ and printf().\nauto s = \"std::cout << '\\\"\"; // <<<\n").empty());
    CHECK(violations("graph/a.cpp", "// A.\nauto s = R\"x(\n#include \"cli/x.h\"\n)x\";\nauto c = '\"';\n").empty());
    CHECK(violations("graph/a.cpp", "// A.\nint n = 1'000; snprintf(b, n, \"%d\", n); /* puts() */\n").empty());
  }

  TEST_CASE("the checker refuses what is wrong, and says where") {
    auto only = [](const std::string& path, const std::string& text) {
      Names found = violations(path, text);
      CAPTURE(path);
      CAPTURE(text);
      REQUIRE(found.size() == 1);
      return found[0];
    };
    CHECK(only("graph/a.cpp", "// A.\n\n#include \"kernels/b.h\"\n") ==
          "graph/a.cpp:3: 'kernels/b.h' may not be included here");
    for (const auto& [folder, other] : std::vector<std::pair<std::string, std::string>>{{"sampling", "datasets/b.h"},
                                                                                        {"datasets", "sampling/b.h"},
                                                                                        {"layers", "train/b.h"},
                                                                                        {"train", "heed.h"},
                                                                                        {"tests", "cli/b.h"},
                                                                                        {"bench", "tests/b.h"},
                                                                                        {"tests", "b.h"},
                                                                                        {"tests", "../graph/b.h"},
                                                                                        {"tests", "unknown/b.h"}})
      CHECK(only(folder + "/a.cpp", "// A.\n#include \"" + other + "\"\n").find("included") != std::string::npos);
    for (const char* line : {"#include <cuda_runtime.h>", "__global__ void f();", "f<<<1, 32>>>();"})
      CHECK(only("tests/a.cpp", "// A.\n" + std::string(line) + "\n") == "tests/a.cpp:2: is CUDA outside kernels");
    CHECK(only("layers/a.cu", "// A.\n") == "layers/a.cu:0: is CUDA outside kernels");
    CHECK(only("tests/a.cu", "// A.\n") == "tests/a.cu:0: is CUDA outside kernels");
    for (const char* line : {"std::cout << 1;", "std::cerr << 1;", "printf(\"\");", "std::puts(\"\");",
                             "std::fprintf(stderr, \"\");", "#include <iostream>", "int q = 'x'; fmt::print(\"\");"})
      CHECK(only("train/a.cpp", "// A.\n" + std::string(line) + "\n").find(":2: prints") != std::string::npos);
    CHECK(only("graph/a.cpp", "#include <vector>\n").find("opens without") != std::string::npos);
    CHECK(only("graph/a.cpp", "#include \"graph/b.h\"\n").find("opens without") != std::string::npos);
    CHECK(only("graph/a.h", "// A.\n").find("#pragma once") != std::string::npos);
    CHECK(only("graph/a.cpp",
               "// A.\n// TO"
               "DO: more\n")
              .find(":2: has a mark") != std::string::npos);
    CHECK(only("graph/a.cpp",
               "// A.\nint x; /* FIX"
               "ME */\n")
              .find(":2: has a mark") != std::string::npos);
  }

  TEST_CASE("every source file keeps the rules") {
    const fs::path source = HEED_SOURCE;
    int files = 0;
    auto check = [&](const fs::path& path) {
      if (!std::set<std::string>{".h", ".cpp", ".cu", ".cuh"}.contains(path.extension().string())) return;
      ++files;
      for (const auto& found : violations(fs::relative(path, source).generic_string(), read(path))) FAIL_CHECK(found);
    };
    if (fs::exists(source / "heed.h")) check(source / "heed.h");
    for (const auto& row : kOrder)
      for (const auto& folder : row)
        if (!folder.empty())
          for (const auto& entry : fs::recursive_directory_iterator(source / folder)) check(entry.path());
    CHECK(files > 30);
  }

  TEST_CASE("the root holds the house and nothing else") {
    CHECK(belongs_in_root("cora.safetensors", false));
    CHECK(belongs_in_root("result.json", false));
    CHECK_FALSE(belongs_in_root("utils", true));
    CHECK_FALSE(belongs_in_root("notes.md", false));
    CHECK_FALSE(belongs_in_root("Makefile", false));
    const fs::path source = HEED_SOURCE;
    for (const auto& entry : fs::directory_iterator(source)) {
      std::string name = entry.path().filename().string();
      if (!belongs_in_root(name, entry.is_directory())) FAIL_CHECK(name << " does not belong in the root");
    }
    for (const auto& name : kRoot)
      if (!fs::exists(source / name)) FAIL_CHECK(name << " is missing from the root");
  }
}
